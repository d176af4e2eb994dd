"""One list of behaviours, run over every provider; and tables of recorded bytes for each one's mappings."""
