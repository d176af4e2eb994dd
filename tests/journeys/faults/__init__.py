"""Journeys in which something dies, freezes or is cut off."""
