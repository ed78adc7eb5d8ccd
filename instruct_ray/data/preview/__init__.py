"""The first rows of the sources as the model will see them, in the terminal."""
