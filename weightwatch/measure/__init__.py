"""Measuring an update against directions: additive sums for each tensor."""
