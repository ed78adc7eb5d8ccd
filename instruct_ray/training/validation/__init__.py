"""Evaluates checkpoints during training, for early stopping and to export the best one."""
