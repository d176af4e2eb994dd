"""The ledger's migrations, run by `common.ledger.migrating` where a process finds them missing."""
