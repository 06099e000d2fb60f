"""An alert: the event of a rule's firing, or of its ceasing to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from weightwatch.reading.grouping import Layer


@dataclass(frozen=True)
class Alert:
    """A rule began to fire, or was resolved. All that a reader needs to act on it."""

    alert: str
    """Name of the rule."""
    state: Literal["firing", "resolved"]
    severity: str
    direction: str
    metric: str
    value: float
    """The metric, in the part of the model that is furthest past the threshold."""
    threshold: float
    where: str
    """That part: ``model``, ``layer 12``, ``layer encoder.block.3`` or ``down_proj``."""
    step: int
    """Step of the check that raised it."""
    since: int
    """Step of the first check in the unbroken row in which the condition held."""
    time: str
    top_layers: tuple[Layer, ...]
    """Layers that contribute most to the movement, most first."""
    top_modules: tuple[str, ...]
    """Kinds of module that contribute most, most first."""
    last_clean: str | None
    """The newest checkpoint at which the condition did not hold; None if there is none."""
    labels: Mapping[str, str]
    actions: tuple[str, ...]

    def describe(self) -> str:
        """Return the alert as one paragraph."""
        if self.state == "resolved":
            return f"{self.alert} resolved at step {self.step}: {self.direction} {self.metric} is {self.value:.4g}."
        back = (
            f"last clean checkpoint: {self.last_clean}"
            if self.last_clean
            else "no clean checkpoint: go back to the base"
        )
        layers, modules = (", ".join(map(str, part)) or "none" for part in (self.top_layers, self.top_modules))
        return (
            f"{self.alert} ({self.severity}) at step {self.step}: {self.direction} {self.metric} is {self.value:.4g} "
            f"in {self.where}, past {self.threshold:.4g} since step {self.since}. "
            f"Over the model, most of it is in layers {layers}, and in modules {modules}; {back}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return the line of alerts.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Alert":
        """Read back a line of alerts.jsonl.

        Raises:
            TypeError: It is not such a line.
        """
        tuples = {key: tuple(line[key]) for key in ("top_layers", "top_modules", "actions")}
        return cls(**{**line, **tuples})
