"""Export: the trained weights as a Hugging Face folder, read back and compared before a run goes on."""
