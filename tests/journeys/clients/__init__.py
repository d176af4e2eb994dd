"""Clients that others wrote, unchanged, against a fleet."""
