"""Tuned model -> evidence that it is better than its base."""
