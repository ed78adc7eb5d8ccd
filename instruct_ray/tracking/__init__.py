"""MLflow: metrics uploaded beside training, and registered versions read."""
