"""What alerts request of the trainer."""

from collections.abc import Iterable
from dataclasses import dataclass

from weightwatch.rules.alert import Alert


@dataclass(frozen=True)
class Requests:
    """Actions that alerts request of the trainer.

    Example:
        >>> Requests.of([])
        Requests(save=False, stop=False)
    """

    save: bool = False
    """Write a checkpoint."""
    stop: bool = False
    """End the training."""

    @classmethod
    def of(cls, raised: Iterable[Alert]) -> "Requests":
        """Return what these alerts request."""
        actions = {action for alert in raised for action in alert.actions}
        return cls("save" in actions, "stop" in actions)
