"""Whole journeys: real processes, real signals, everything but the model."""
