"""Judges: models that rate answers, and the rules of recipes that need no model."""
