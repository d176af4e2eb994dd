"""The ledger's migrations, run by `common.ledger.schema` when a process starts."""
