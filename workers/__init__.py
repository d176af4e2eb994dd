"""Takes jobs, talks to models, writes answers."""
