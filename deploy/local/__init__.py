"""The command line, and the whole stack on one machine with embedded parts."""
