"""The errors that a user of weightwatch can cause."""


class WeightWatchError(ValueError):
    """An error that a user can fix. The message says what is wrong, where, and what to do."""
