"""The front door: HTTP in, tokens out."""
