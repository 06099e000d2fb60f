"""The baseline of harmless runs, which a rule takes off the figures of a run."""

from collections.abc import Collection, Sequence

import numpy as np

from weightwatch.baseline import Baseline
from weightwatch.calibration.references import Reference, alike
from weightwatch.config import Rule
from weightwatch.vectors.errors import WeightWatchError

THRESHOLD = 3.0
"""Threshold of ``over_baseline``, if none is calibrated: chosen and measured by ``benchmarks.detection``."""
ENOUGH = 5
"""Controls from which on the usual threshold means something."""
_MOST = 40  # steps of a baseline; the figures change slowly, and are linear between
_DIGITS = 6


def over_baseline(rule: Rule, runs: Sequence[Reference], others: Sequence[Reference] = ()) -> Rule:
    """Return a rule that judges what is left without the mean figures of some runs.

    Args:
        rule: A rule about the whole model. Its metric becomes ``over_baseline``, and its threshold 3.
        runs: The harmless runs.
        others: Further references of the rule, which count for its setup.

    Raises:
        WeightWatchError: The runs were watched with fewer than five controls (with none, if the threshold comes from
            other runs), or not all were trained and watched alike.
    """
    zs = Rule.model_validate({**_bare(rule), "metric": "z"})
    setup = alike([*runs, *others], zs)
    last = min(run.readings[-1].step for run in runs)
    known = [reading.step for reading in runs[0].readings if reading.update_norm > 0 and reading.step <= last]
    steps = [known[at] for at in np.unique(np.linspace(0, len(known) - 1, _MOST).round().astype(int))]
    count, least = len(setup.controls), 1 if others else ENOUGH
    if count < least:
        raise WeightWatchError(
            f"{runs[0].name} was watched with {count} control{'s' * (count != 1)}, and a baseline compares with "
            f"{least} or more. Build a bank with `weightwatch build --num-controls 19`, and watch the runs again."
        )
    baseline = Baseline(
        runs=len(runs),
        ids=[run.run for run in runs if run.run],
        setup=setup,
        steps=steps,
        direction=_mean(runs, rule.direction, steps),
        controls={name: _mean(runs, name, steps) for name in setup.controls},
    )
    return Rule.model_validate(
        {**_bare(rule), "metric": "over_baseline", "above": THRESHOLD, "baseline": baseline.model_dump()}
    )


def doubtful(rule: Rule, runs: Sequence[Reference]) -> list[tuple[str, str]]:
    """Return the runs that look too bad for a baseline, and why: what they learned is never seen in another run.

    Such a run reaches further along the direction than along any of five or more controls, or is far from the mean of
    the others.
    """
    beyond = Rule.model_validate({**_bare(rule), "metric": "over_controls", "above": 0.0})
    enough = all(len(run.setup.controls) >= ENOUGH for run in runs)
    found = [
        (run.name, f"reaches further along {rule.direction} than along any control")
        for run in runs
        if enough and run.score(beyond) > 0
    ]
    if enough and len(runs) > 2:
        for at, run in enumerate(runs):
            apart = over_baseline(rule, [*runs[:at], *runs[at + 1 :]])
            if run.score(apart) > 2 * THRESHOLD:
                found.append((run.name, f"moves further along {rule.direction} than the others do"))
    return found


def require_harmless(rule: Rule, runs: Sequence[Reference], accept: Collection[str]) -> None:
    """Refuse a baseline of a run that looks bad.

    Raises:
        WeightWatchError: A run looks bad, and is not accepted.
    """
    for name, why in doubtful(rule, runs):
        if name not in accept:
            raise WeightWatchError(
                f"{name} {why}. What a baseline has learned is never seen in other runs, so look at its data, and "
                f"leave the run out if it is not harmless; to keep it as it is, pass --accept {name}."
            )


def _bare(rule: Rule) -> dict[str, object]:
    return rule.model_dump(by_alias=True, exclude_none=True, exclude={"calibration", "baseline"})


def _mean(runs: Sequence[Reference], direction: str, steps: Sequence[int]) -> list[float]:
    """Return the mean reach cosine of runs along a direction at some steps, linear between their checks."""
    figures = [
        np.interp(
            steps,
            [reading.step for reading in run.readings if reading.update_norm > 0],
            [reading[direction].reach_cosine for reading in run.readings if reading.update_norm > 0],
        )
        for run in runs
    ]
    return [round(float(value), _DIGITS) for value in np.mean(figures, axis=0)]
