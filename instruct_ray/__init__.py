"""Triples -> prepare -> packs -> tune -> model -> evaluate -> evidence -> register -> version -> serve -> endpoint."""
