"""Triples -> token ids, by one contract from training to serving."""
