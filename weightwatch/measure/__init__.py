"""Sums of an update along directions."""
