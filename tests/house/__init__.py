"""Rules about the source tree itself, one rule a test."""
