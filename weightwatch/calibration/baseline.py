"""The baseline of harmless runs, which a rule takes off the figures of a run."""

from collections.abc import Collection, Sequence

import numpy as np

from weightwatch.baseline import Baseline
from weightwatch.calibration.references import Reference, alike
from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.setup import Setup
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
    steps, figures = _means(rule.direction, runs, setup)
    require_controls(len(figures) - 1, few=bool(others))
    ids = [run.identity for run in runs]
    made = Baseline(runs=len(runs), ids=ids, setup=setup, direction=rule.direction, steps=steps, figures=figures)
    bare = rule.model_dump(by_alias=True, exclude_none=True, exclude={"calibration", "baseline"})
    return Rule.model_validate({**bare, "metric": "over_baseline", "above": THRESHOLD, "baseline": made.model_dump()})


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

    The one that is furthest is named, since it moves the mean that the others are compared with. As for the rule, it
    must be so far in as many checks in a row as its ``for`` says.
    """
    if len(runs) < 3:
        return None
    found = []
    for at, run in enumerate(runs):
        rest = [*runs[:at], *runs[at + 1 :]]
        setup = alike(rest, rule, controls=True)
        steps, figures = _means(rule.direction, rest, setup)
        mean = Baseline(runs=len(rest), setup=setup, direction=rule.direction, steps=steps, figures=figures)
        read = [(each.step, {name: each[name].reach_cosine for name in figures}) for each in _moved(run)]
        values = [abs(value) for step, each in read if (value := mean.z(each, step)) is not None]
        size = min(rule.for_, len(values))
        windows = (values[start : start + size] for start in range(len(values) - size + 1))
        found.append((run.name, max(map(min, windows)) if values else 0.0))
    return max(found, key=lambda each: each[1])


def require_harmless(rule: Rule, runs: Sequence[Reference], accept: Collection[str]) -> None:
    """Refuse a baseline of a run that looks bad, as far as it can be told: what it learned is never seen in others.

    It takes eight controls or more. A run looks bad that reaches further along the direction than along any of them; of
    three runs or more, one that is far from the mean of the others, too.

    Raises:
        WeightWatchError: A run looks bad, and is not accepted; or was not watched along all directions all the time.
    """
    _, figures = _means(rule.direction, runs, alike(runs, rule, controls=True))
    if len(figures) - 1 < ENOUGH_CONTROLS:
        return
    beyond = rule.model_copy(update={"metric": "over_controls", "baseline": None})
    left = [run for run in runs if run.name not in accept]
    for run in left:
        if run.score(beyond) > 0:
            raise _bad(run.name, f"reaches further along {rule.direction} than along any control")
    far = furthest(rule, left if len(left) > 2 else runs)
    if far is not None and far[0] not in accept and far[1] > 2 * THRESHOLD:
        raise _bad(far[0], f"is far from the mean of the others along {rule.direction} (z of {far[1]:.3g})")


def _bad(name: str, why: str) -> WeightWatchError:
    return WeightWatchError(
        f"{name} {why}. What a baseline has learned is never seen in other runs, so look at its data, and leave the "
        f"run out if it is not harmless; to keep it as it is, pass --accept {name}."
    )


def _moved(run: Reference) -> list[Reading]:
    """Return the readings of a run at which something has moved."""
    return [reading for reading in run.readings if reading.update_norm > 0]


def _means(direction: str, runs: Sequence[Reference], setup: Setup) -> tuple[list[int], dict[str, list[float]]]:
    """Return steps, and the mean figures there along the direction and all controls with weights in what is trained."""
    for run in runs:
        _require_whole(run, [direction, *setup.controls])
    steps = _steps(runs)
    figures = {name: _mean(runs, name, steps) for name in (direction, *setup.controls)}
    return steps, {name: values for name, values in figures.items() if name == direction or any(values)}


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
    checks = {run.name: [reading.step for reading in _moved(run)] for run in runs}
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
        moved = _moved(run)
        values = [reading[direction].reach_cosine for reading in moved]
        figures.append(np.interp(steps, [reading.step for reading in moved], values))
    return [round(float(value), _DIGITS) for value in np.mean(figures, axis=0)]
