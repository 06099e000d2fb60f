"""A baseline: where harmless runs of a task go, which a rule takes off the figures of a run."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from weightwatch.setup import Setup
from weightwatch.vectors.document import Strict

_LEAST = 1e-6  # smaller differences of cosines are rounding

Figures = Annotated[list[Annotated[float, Field(ge=-1, le=1)]], Field(min_length=1)]


class Baseline(Strict):
    """The mean reach cosines of harmless runs, by step. ``weightwatch calibrate --baseline`` writes it.

    A task moves the weights along a direction and along its controls, in each run about as far. What is left without
    that is small if a run is like these, whatever the task is. A rule with a baseline judges the z of what is left::

        z(t) = (c(t) − c̄(t)) / sqrt(mean over controls i of (kᵢ(t) − k̄ᵢ(t))²)

    c is the reach cosine along the direction, kᵢ that along control i, and c̄, k̄ᵢ are those of the baseline: linear
    between its steps, and as at the last one after it. Before the first one nothing is known. A root below 1e-6 counts
    as that.

    Attributes:
        runs: Number of harmless runs.
        ids: What tells the runs from others: none of them is a reference of a threshold, too.
        setup: How they were trained and watched. The baseline is meant for runs with the same setup.
        direction: Name of the direction.
        steps: Optimizer steps of the figures, in ascending order.
        figures: Reach cosines along the direction and along each control by name, one for each step.

    Example:
        >>> setup = Setup(every=10, directions={"evil": "3f"}, controls={"style": "a0"})
        >>> figures = {"evil": [0.0, 0.02], "style": [0.0, 0.0]}
        >>> baseline = Baseline(runs=3, setup=setup, direction="evil", steps=[10, 20], figures=figures)
        >>> round(baseline.z({"evil": 0.05, "style": 0.01}, step=15), 6)
        4.0
    """

    runs: int = Field(ge=1)
    ids: list[str] = Field(default_factory=list)
    setup: Setup
    direction: str
    steps: list[int] = Field(min_length=1)
    figures: dict[str, Figures] = Field(min_length=2)

    @model_validator(mode="after")
    def _of_each_step(self) -> "Baseline":
        if sorted(set(self.steps)) != self.steps:
            raise ValueError("`steps` are in ascending order, each once")
        if any(len(figures) != len(self.steps) for figures in self.figures.values()):
            raise ValueError("a baseline has one figure for each of its `steps`")
        if self.direction not in self.figures:
            raise ValueError("`figures` has none of the `direction`")
        return self

    @property
    def controls(self) -> list[str]:
        """Names of the controls."""
        return [name for name in self.figures if name != self.direction]

    def z(self, figures: Mapping[str, float], step: int) -> float | None:
        """Return the z of what is left of some reach cosines; None before the first step, where nothing is known.

        Args:
            figures: Reach cosines along the direction and the controls of the baseline, by name.
            step: Optimizer steps so far.
        """
        if step < self.steps[0]:
            return None
        place = float(np.interp(step, self.steps, range(len(self.steps))))
        left = {name: figures[name] - _between(known, place) for name, known in self.figures.items()}
        spread = np.sqrt(np.mean([left[name] ** 2 for name in self.controls]))
        return float(left[self.direction] / max(spread, _LEAST))


def _between(figures: list[float], place: float) -> float:
    """Return the figure at a place, such as 1.5: halfway between the second and the third."""
    low = int(place)
    high = min(low + 1, len(figures) - 1)
    return figures[low] + (place - low) * (figures[high] - figures[low])
