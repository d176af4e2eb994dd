"""The bench: what a request costs, what the queue adds, what stays true under load. Run as `python -m tests.bench`."""
