"""Channels: how an alert reaches a person who is not looking."""
