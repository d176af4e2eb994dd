"""Everything that proves what the README promises; `tests/house` looks at the source itself."""
