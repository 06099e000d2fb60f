"""Evaluation of a direction: what a model does when it is steered with it, and what that costs."""
