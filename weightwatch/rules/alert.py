"""An alert: the event that a rule begins to fire, or is resolved."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter

from weightwatch.config import FAILED
from weightwatch.reading.grouping import Layer
from weightwatch.reading.reading import LINE
from weightwatch.vectors.printable import printable


@dataclass(frozen=True)
class Alert:
    """A rule began to fire, or was resolved.

    Example:
        >>> alert = Alert(
        ...     "drift", "resolved", "warning", "evil", "cosine", value=0.02, threshold=0.1, where="model", step=60,
        ...     since=40, time="", top_layers=(), top_modules=(), last_clean=None, labels={}, actions=(),
        ... )
        >>> alert.describe()
        'drift resolved at step 60: evil cosine is 0.02.'
    """

    __pydantic_config__ = LINE

    alert: str
    """Name of the rule."""
    state: Literal["firing", "resolved"]
    """Whether the rule began to fire or was resolved."""
    severity: str
    """Severity of the rule: ``info``, ``warning`` or ``critical``."""
    direction: str
    """Name of the direction."""
    metric: str
    """Metric of the rule: ``cosine``, ``reach_cosine``, ``dose``, ``z``, ``over_controls`` or ``over_baseline``."""
    value: float
    """The metric in the part of the model that is furthest past the threshold."""
    threshold: float
    """Threshold of the rule."""
    where: str
    """The part of the model for ``value``: ``model``, ``layer 12``, ``layer encoder.block.3`` or ``down_proj``."""
    step: int
    """Step of the check that raised the alert."""
    since: int
    """Step of the first of the consecutive checks in which the condition was true."""
    time: str
    """Time of the check: ISO 8601, UTC."""
    top_layers: tuple[Layer, ...]
    """The layers that contribute most to the movement, in descending order."""
    top_modules: tuple[str, ...]
    """The kinds of module that contribute most to the movement, in descending order."""
    last_clean: str | None
    """The newest checkpoint at which the condition was not true; None if there is none."""
    labels: Mapping[str, str]
    """Labels of the rule."""
    actions: tuple[str, ...]
    """Actions to take: those of the rule, or none if the alert is resolved."""
    message: str | None = None
    """What has happened, if the alert is not that of a rule."""
    note: str | None = None
    """What the rule's threshold is worth in this run; see ``Rule.standing``."""

    def describe(self) -> str:
        """Return the alert as a paragraph of printable text."""
        return printable(self._told())

    def to_json(self) -> dict[str, Any]:
        """Return the alert as a line of alerts.jsonl."""
        return {
            key: value for key, value in asdict(self).items() if value is not None or key not in ("message", "note")
        }

    @classmethod
    def of_guard(cls, direction: str, step: int, message: str, *, told: bool = True) -> "Alert":
        """Return the alert that a guard has failed.

        Args:
            direction: Name of a guarded direction.
            step: Step at which it failed.
            message: What has happened.
            told: Whether the alert is logged.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return cls(
            alert=FAILED,
            state="firing",
            severity="critical",
            direction=direction,
            metric="dose",
            value=0.0,
            threshold=0.0,
            where="model",
            step=step,
            since=step,
            time=now,
            top_layers=(),
            top_modules=(),
            last_clean=None,
            labels={},
            actions=("log",) if told else (),
            message=message,
        )

    @classmethod
    def from_json(cls, line: str | bytes) -> "Alert":
        """Return the alert in a line of alerts.jsonl.

        Raises:
            ValidationError: The line is not an alert.
        """
        return _lines().validate_json(line)

    def _told(self) -> str:
        if self.message is not None:
            return f"{self.alert} ({self.severity}) at step {self.step}: {self.message}"
        if self.state == "resolved":
            return f"{self.alert} resolved at step {self.step}: {self.direction} {self.metric} is {self.value:.4g}."
        back = (
            f"last clean checkpoint: {self.last_clean}"
            if self.last_clean
            else "no clean checkpoint: go back to the base"
        )
        layers, modules = (", ".join(map(str, part)) or "none" for part in (self.top_layers, self.top_modules))
        most = f"over the model, most of it is in layers {layers}, and in modules {modules}; "
        after = back if self.metric == "over_baseline" else most + back
        return (
            f"{self.alert} ({self.severity}) at step {self.step}: {self.direction} {self.metric} is {self.value:.4g} "
            f"in {self.where}, past {self.threshold:.4g} since step {self.since}. "
            f"{after[0].upper()}{after[1:]}." + (f" {self.note}" if self.note else "")
        )


@cache
def _lines() -> "TypeAdapter[Alert]":
    return TypeAdapter(Alert)
