"""Batches at work: each line of a file becomes a job, and the jobs' ends become files, whoever dies on the way."""
