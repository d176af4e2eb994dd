"""One small file a kind of model server: our request to theirs, their bytes to our chunks."""
