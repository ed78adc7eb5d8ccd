"""Model: loading it for training, the loss of a pack, attention over packs, and whether packing is exact."""
