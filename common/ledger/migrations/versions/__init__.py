"""One file a migration. Each only adds, so that processes of the version before go on beside it."""
