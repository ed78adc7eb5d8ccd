"""Files and object stores -> records -> triples."""
