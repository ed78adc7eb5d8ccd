"""DeepSpeed and the collectives of the ranks."""
