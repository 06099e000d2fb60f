"""Reports of a run: log, terminal, TensorBoard and pictures."""
