"""Finds the training rows and the passages that go into a prompt."""
