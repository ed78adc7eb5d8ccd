"""The `instruct-ray` command."""
