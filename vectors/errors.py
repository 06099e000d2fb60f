"""The one family of errors that a user of weightwatch can cause."""


class WeightWatchError(ValueError):
    """Something a user can mend: the message says what was wrong, where, and what to do."""
