"""Model weights on disk: names, checkpoints, adapters."""
