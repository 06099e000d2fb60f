"""Readings: the scores of one check."""
