"""Sharded models: the local part of each parameter, for each engine, and the processes that measure together."""
