"""The baseline of harmless runs, which a rule takes off the figures of a run."""

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

from weightwatch.baseline import Baseline
from weightwatch.calibration.references import Reference, alike
from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.vectors.errors import WeightWatchError

THRESHOLD = 3.0
"""Threshold of ``over_baseline``, if none is calibrated: chosen and measured by ``benchmarks.detection``."""
ENOUGH_CONTROLS = 8
"""The fewest controls that this threshold was measured with."""
_MOST = 40  # steps of a baseline; the figures change slowly, and are linear between
_DIGITS = 6


def with_baseline(rule: Rule, runs: Sequence[Reference], others: Sequence[Reference] = ()) -> Rule:
    """Return a rule that judges what is left without the mean figures of some runs.

    Args:
        rule: A rule about the whole model. Its metric becomes ``over_baseline``, and its threshold 3.
        runs: The harmless runs.
        others: Further references of the rule, which count for its setup.

    Raises:
        WeightWatchError: The runs were watched with fewer than eight controls (with none, if the threshold comes from
            other runs), have no step in common, were not watched along all directions all the time, or not all were
            trained and watched alike.
    """
    setup = alike([*runs, *others], rule, controls=True)
    for run in runs:
        _require_whole(run, [rule.direction, *setup.controls])
    steps = _steps(runs)
    controls = {name: _mean(runs, name, steps) for name in setup.controls}
    controls = {name: figures for name, figures in controls.items() if any(figures)}  # else it has no weights there
    require_controls(len(controls), few=bool(others))
    baseline = Baseline(
        runs=len(runs),
        ids=[run.identity for run in runs],
        setup=setup,
        direction=rule.direction,
        steps=steps,
        figures={rule.direction: _mean(runs, rule.direction, steps), **controls},
    )
    bare = rule.model_dump(by_alias=True, exclude_none=True, exclude={"calibration", "baseline"})
    made = {"metric": "over_baseline", "above": THRESHOLD, "baseline": baseline.model_dump()}
    return Rule.model_validate({**bare, **made})


def require_controls(count: int, *, few: bool) -> None:
    """Refuse a number of controls that a baseline can't be compared with.

    Args:
        count: The number.
        few: Whether one is enough, since the threshold comes from further runs.

    Raises:
        WeightWatchError: There are too few.
    """
    least = 1 if few else ENOUGH_CONTROLS
    if count < least:
        raise WeightWatchError(
            f"A baseline compares with {least} control{'s' * (least > 1)} or more that have weights in what is "
            f"trained, and there {'is' if count == 1 else 'are'} {count}. Build a bank with "
            "`weightwatch build --num-controls 19`, and watch the runs with it."
        )


def furthest(rule: Rule, runs: Sequence[Reference]) -> tuple[str, float] | None:
    """Return the run that is furthest from the mean of the others, either way, and its z; None of fewer than three.

    The one that is furthest is named, since it moves the mean that the others are compared with.
    """
    if len(runs) < 3:
        return None
    found = []
    for at, run in enumerate(runs):
        rest = [*runs[:at], *runs[at + 1 :]]
        known = with_baseline(rule, rest).baseline
        values = [_z(known, reading) for reading in run.readings if reading.update_norm > 0]
        kept = [min(abs(a), abs(b)) for a, b in pairwise(value for value in values if value is not None)]
        found.append((run.name, max(kept, default=0.0)))
    return max(found, key=lambda each: each[1])


def require_harmless(rule: Rule, runs: Sequence[Reference], accept: Collection[str]) -> None:
    """Refuse a baseline of a run that looks bad, as far as it can be told: what it learned is never seen in others.

    It takes eight controls or more. A run looks bad that reaches further along the direction than along any of them; of
    three runs or more, one that is far from the mean of the others, too.

    Raises:
        WeightWatchError: A run looks bad, and is not accepted.
    """
    if any(len(run.setup.controls) < ENOUGH_CONTROLS for run in runs):
        return
    beyond = rule.model_copy(update={"metric": "over_controls", "baseline": None})
    left = [run for run in runs if run.name not in accept]
    for run in left:
        if run.score(beyond) > 0:
            raise _bad(run.name, f"reaches further along {rule.direction} than along any control")
    far = furthest(rule, left)
    if far is not None and far[1] > 2 * THRESHOLD:
        raise _bad(far[0], f"is far from the mean of the others along {rule.direction} (z of {far[1]:.3g})")


def _bad(name: str, why: str) -> WeightWatchError:
    return WeightWatchError(
        f"{name} {why}. What a baseline has learned is never seen in other runs, so look at its data, and leave the "
        f"run out if it is not harmless; to keep it as it is, pass --accept {name}."
    )


def _z(known: Baseline | None, reading: Reading) -> float | None:
    if known is None:
        return None
    return known.z({name: reading[name].reach_cosine for name in known.figures}, reading.step)


def _require_whole(run: Reference, names: Sequence[str]) -> None:
    """Refuse a run that was watched along fewer directions at first than at its end."""
    for reading in run.readings:
        missing = [name for name in names if name not in reading.directions]
        if missing:
            raise WeightWatchError(
                f"{run.name} has no figure along {missing[0]} at step {reading.step}, though it was watched later. A "
                "baseline takes runs that were watched along all controls from their start. Leave it out."
            )


def _steps(runs: Sequence[Reference]) -> list[int]:
    """Return the steps of a baseline: the checks of the run with the fewest, as far as all runs have some."""
    checks = {run.name: [reading.step for reading in run.readings if reading.update_norm > 0] for run in runs}
    late, early = max(checks, key=lambda name: checks[name][0]), min(checks, key=lambda name: checks[name][-1])
    first, last = checks[late][0], checks[early][-1]
    shared = min(([step for step in steps if first <= step <= last] for steps in checks.values()), key=len)
    if not shared:
        raise WeightWatchError(
            f"{late} has its first check at step {first}, and {early} its last at step {last}, so they have none in "
            "common. Leave one of them out."
        )
    return [shared[at] for at in np.unique(np.linspace(0, len(shared) - 1, _MOST).round().astype(int))]


def _mean(runs: Sequence[Reference], direction: str, steps: Sequence[int]) -> list[float]:
    """Return the mean reach cosine of runs along a direction at some steps, linear between their checks."""
    figures = []
    for run in runs:
        moved = [reading for reading in run.readings if reading.update_norm > 0]
        values = [reading[direction].reach_cosine for reading in moved]
        figures.append(np.interp(steps, [reading.step for reading in moved], values))
    return [round(float(value), _DIGITS) for value in np.mean(figures, axis=0)]
