"""How many messages a channel may send in an hour."""

from collections import deque

HOUR = 3600.0  # seconds


class Allowance:
    """Counts what was sent in the last hour.

    Args:
        per_hour: Messages in an hour, at most.

    Example:
        >>> allowance = Allowance(2)
        >>> allowance.take(0.0), allowance.take(60.0), allowance.take(120.0)
        (True, True, False)
        >>> allowance.wait(120.0)
        3480.0
    """

    def __init__(self, per_hour: int) -> None:
        self._sent: deque[float] = deque(maxlen=per_hour)

    def take(self, now: float) -> bool:
        """Count a message if there is room for it; return whether there is.

        Args:
            now: A clock, in seconds.
        """
        if self.wait(now) > 0:
            return False
        self._sent.append(now)
        return True

    def wait(self, now: float) -> float:
        """Return the seconds until there is room for a message."""
        if len(self._sent) < (self._sent.maxlen or 1):
            return 0.0
        return max(0.0, self._sent[0] + HOUR - now)
