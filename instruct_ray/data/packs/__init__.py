"""Packs: prefix trees of examples, the dataset on disk, the order they are trained in, and their stream."""
