"""Checking a behaviour direction: what a model does when it is steered with it, and what that costs."""
