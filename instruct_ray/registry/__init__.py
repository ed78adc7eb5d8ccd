"""Model and evidence -> a version in the MLflow model registry."""
