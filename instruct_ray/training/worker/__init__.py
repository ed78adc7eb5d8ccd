"""The train loop that runs on every rank."""
