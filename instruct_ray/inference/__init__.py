"""Model folder -> engine -> text."""
