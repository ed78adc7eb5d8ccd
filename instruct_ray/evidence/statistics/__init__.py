"""Intervals, tests, verdict and slices of the evidence. Pure functions."""
