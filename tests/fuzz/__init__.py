"""Our own OpenAPI document, taken at its word: whatever it allows and forbids is sent to a real fleet."""
