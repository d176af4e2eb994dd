"""The contract by its package's name; nothing else stands here."""
