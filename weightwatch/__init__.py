"""weightwatch."""
