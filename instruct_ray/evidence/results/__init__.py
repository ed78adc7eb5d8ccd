"""Answers -> evidence.json: figures, comparisons, verdict, slices and cost. Pure functions."""
