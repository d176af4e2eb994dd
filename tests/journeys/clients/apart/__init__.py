"""Clients that need an environment of their own: `./just clients` makes one for each of the two sets of locks."""
