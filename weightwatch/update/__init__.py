"""The update: how each trained tensor differs from the reference."""
