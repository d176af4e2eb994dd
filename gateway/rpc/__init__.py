"""gRPC: the same jobs, keys and limits as over HTTP, by the contract in `headrace/v1`."""
