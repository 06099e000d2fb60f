"""Cost of weightwatch, compared with the naive way to measure: ``python -m benchmarks``."""
