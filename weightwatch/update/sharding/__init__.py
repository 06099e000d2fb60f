"""Sharded models: the local shards of each parameter under each engine, and the processes that measure together."""
