"""Triples -> packs."""
