"""A run checked, timed and broken on purpose before it is trained. It launches training."""
