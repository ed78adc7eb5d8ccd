"""Checkpoints: shards that every rank commits with a manifest, resuming from them, and recovery after a crash."""
