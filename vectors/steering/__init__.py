"""Adding a multiple of a direction to a model."""
