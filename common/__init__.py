"""What the three processes must agree on: words, set-up, and the one room that speaks Redis."""
