"""Checkpoints evaluated beside training, and what follows from the results."""
