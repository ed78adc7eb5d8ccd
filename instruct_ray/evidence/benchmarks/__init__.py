"""Base and tuned model -> benchmarks.json: what tuning cost in general skill."""
