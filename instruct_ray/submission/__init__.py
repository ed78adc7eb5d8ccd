"""Submits a stage as a job to a Ray cluster over HTTP, after checks that queue nothing when they fail."""
