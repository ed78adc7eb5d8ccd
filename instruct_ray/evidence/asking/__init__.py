"""Asks the arms: engines, other models' endpoints, the journal of answers, latency."""
