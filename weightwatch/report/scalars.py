"""The figures of a reading as named numbers, for trackers."""

from collections.abc import Mapping, Sequence

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.rules.engine import worst

METRICS = ("cosine", "reach_cosine", "dose", "z", "over_controls")
TAKEN = "dose_taken_back"
"""Tag of what a guard has taken back of a direction since the check before."""
SHARE = "guard/share"
"""Tag of how large all that is, as a share of the norm of the update."""


def scalars(reading: Reading, rules: Sequence[Rule] = ()) -> dict[str, float]:
    """Return the figures of the whole model under the tags that TensorBoard and other trackers show.

    Args:
        reading: The reading.
        rules: Rules of the run. The figure of one with a baseline is its own, under ``over_baseline/<alert>``.

    Example:
        ``{"update_norm": 1.31, "evil/cosine": 0.34, "evil/reach_cosine": 0.47, "evil/dose": 0.12, …}``
    """
    found = {"update_norm": reading.update_norm}
    for name, direction in reading.directions.items():
        values = {f"{name}/{metric}": getattr(direction, metric) for metric in METRICS}
        found.update({tag: value for tag, value in values.items() if value is not None})  # some need controls
    beyond = {f"over_baseline/{rule.alert}": worst(rule, reading)[1] for rule in rules if rule.baseline is not None}
    found.update({tag: value for tag, value in beyond.items() if value is not None})
    if reading.guard is not None:
        found[SHARE] = reading.guard.share
        found.update({f"{name}/{TAKEN}": dose for name, dose in reading.guard.dose.items()})
    return found


def tracked(reading: Reading, firing: Mapping[str, bool], rules: Sequence[Rule] = ()) -> dict[str, float]:
    """Return what trackers get of a check: the figures of the whole model, and as 0 or 1 whether each rule fires.

    Args:
        reading: The reading.
        firing: Whether each rule fires, by its name.
        rules: The rules; see ``scalars``.

    Example:
        >>> tracked(Reading(40, "", 1.3, {}), {"evil-drift": True})
        {'weightwatch/update_norm': 1.3, 'weightwatch/alerts/evil-drift': 1.0}
    """
    found = {**scalars(reading, rules), **{f"alerts/{rule}": float(fires) for rule, fires in firing.items()}}
    return {f"weightwatch/{tag}": value for tag, value in found.items()}
