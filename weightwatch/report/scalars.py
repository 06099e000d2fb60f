"""The figures of a reading as named numbers, for trackers."""

from collections.abc import Mapping, Sequence

from weightwatch.reading.reading import Reading
from weightwatch.report.base import Reporter
from weightwatch.rules.alert import Alert

METRICS = ("cosine", "reach_cosine", "dose", "z", "over_controls")
TAKEN = "dose_taken_back"
"""Tag of what a guard has taken back of a direction since the check before."""
SHARE = "guard/share"
"""Tag of how large all that is, as a share of the norm of the update."""


def scalars(reading: Reading) -> dict[str, float]:
    """Return the figures of the whole model under the tags that TensorBoard and other trackers show.

    Example:
        ``{"update_norm": 1.31, "evil/cosine": 0.34, "evil/reach_cosine": 0.47, "evil/dose": 0.12, …}``
    """
    found = {"update_norm": reading.update_norm}
    for name, direction in reading.directions.items():
        values = {f"{name}/{metric}": getattr(direction, metric) for metric in METRICS}
        found.update({tag: value for tag, value in values.items() if value is not None})  # some need controls
    if reading.guard is not None:
        found[SHARE] = reading.guard.share
        found.update({f"{name}/{TAKEN}": dose for name, dose in reading.guard.dose.items()})
    return found


class PendingScalars(Reporter):
    """Keeps the figures of the newest reading until a tracker takes them."""

    def __init__(self) -> None:
        self._figures: dict[str, float] = {}

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Keep the figures in place of those of the reading before. At step 0 nothing has moved yet."""
        if reading.step:
            self._figures = {f"weightwatch/{tag}": value for tag, value in scalars(reading).items()}

    def take(self) -> dict[str, float]:
        """Return the figures of the newest reading; empty if they were taken already."""
        taken, self._figures = self._figures, {}
        return taken
