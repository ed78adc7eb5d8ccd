"""Packs -> model. The first line of every module names the process that runs it."""
