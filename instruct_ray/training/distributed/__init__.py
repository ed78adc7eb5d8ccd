"""DeepSpeed integration and collectives."""
