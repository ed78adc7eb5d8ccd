"""Measures of answers against expected outputs. Pure functions."""
