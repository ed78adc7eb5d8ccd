"""Packs: prefix trees of examples, the dataset on disk, the training order, and their stream."""
