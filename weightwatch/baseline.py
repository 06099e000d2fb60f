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
    between its steps, and as at the last one after it. Before the first one nothing is known, and z is 0.

    Attributes:
        runs: Number of harmless runs.
        ids: Ids of the runs, as far as their records have them: none of them is a reference of a threshold, too.
        setup: How they were trained and watched. The baseline is meant for runs with the same setup.
        steps: Optimizer steps of the figures, in ascending order.
        direction: Reach cosines along the direction, one for each step.
        controls: Reach cosines along each control, one for each step.

    Example:
        >>> setup = Setup(every=10, directions={"evil": "3f"}, controls={"style": "a0"})
        >>> baseline = Baseline(runs=3, setup=setup, steps=[10, 20], direction=[0.0, 0.02], controls={"style": [0, 0]})
        >>> round(baseline.z(0.05, {"style": 0.01}, step=15), 6)
        4.0
    """

    runs: int = Field(ge=1)
    ids: list[str] = Field(default_factory=list)
    setup: Setup
    steps: list[int] = Field(min_length=1)
    direction: Figures
    controls: dict[str, Figures] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_each_step(self) -> "Baseline":
        if sorted(set(self.steps)) != self.steps:
            raise ValueError("`steps` are in ascending order, each once")
        if any(len(figures) != len(self.steps) for figures in (self.direction, *self.controls.values())):
            raise ValueError("a baseline has one figure for each of its `steps`")
        return self

    def knows(self, step: int) -> bool:
        """Whether a step is not before the first one."""
        return step >= self.steps[0]

    def z(self, direction: float, controls: Mapping[str, float], step: int) -> float:
        """Return the z of what is left of some reach cosines without those of the baseline.

        Args:
            direction: Reach cosine along the direction.
            controls: Reach cosines along the controls of the baseline, by name.
            step: Optimizer steps so far.
        """
        if not self.knows(step):
            return 0.0
        place = float(np.interp(step, self.steps, range(len(self.steps))))
        left = [controls[name] - _between(figures, place) for name, figures in self.controls.items()]
        spread = np.sqrt(np.mean(np.square(left)))
        return float((direction - _between(self.direction, place)) / max(spread, _LEAST))


def _between(figures: list[float], place: float) -> float:
    """Return the figure at a place, such as 1.5: halfway between the second and the third."""
    low = int(place)
    high = min(low + 1, len(figures) - 1)
    return figures[low] + (place - low) * (figures[high] - figures[low])
