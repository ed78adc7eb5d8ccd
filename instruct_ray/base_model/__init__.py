"""`model.base` -> a local Hugging Face folder that every node sees, with its digest."""
