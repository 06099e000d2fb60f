"""The update τ: the change of each trained tensor since the reference."""
