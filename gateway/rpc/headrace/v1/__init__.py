"""Version 1 of the contract, and the code generated of it, which nobody edits."""
