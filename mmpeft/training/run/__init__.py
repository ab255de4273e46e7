"""A run's directory: checkpoints, metrics, curves, the model card."""
