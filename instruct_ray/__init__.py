"""Instruction tuning on Ray: triples -> packs -> model -> evidence -> version -> endpoint."""
