"""Reading checkpoints, for export and training."""
