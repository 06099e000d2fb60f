"""Alerting rules."""
