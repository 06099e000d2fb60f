"""What weightwatch costs, beside the way that people measure today: ``python -m benchmarks``."""
