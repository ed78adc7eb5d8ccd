"""MLflow: uploads metrics during training, and reads registered versions."""
