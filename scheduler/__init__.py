"""Everything that happens on a timer, and nothing on a request's path."""
