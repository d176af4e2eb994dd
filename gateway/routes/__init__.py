"""Thin: each route reads its request, asks the parts, shapes the answer."""
