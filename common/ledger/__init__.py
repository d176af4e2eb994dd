"""The SQL ledger: what Redis must not be the only one to know. Only this package speaks SQL."""
