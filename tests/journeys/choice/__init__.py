"""Which model answers: names, choices, limits, fallbacks, over one fleet."""
