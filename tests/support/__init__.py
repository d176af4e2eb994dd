"""What several tests share: real servers, stand-ins for models, ways to wait for a state."""
