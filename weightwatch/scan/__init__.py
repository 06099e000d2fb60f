"""The same measurement for checkpoints on disk."""
