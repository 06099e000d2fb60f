"""Rules whose threshold comes from harmless runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context
from itertools import chain, count
from pathlib import Path
from typing import get_args

from weightwatch.baseline import Baseline
from weightwatch.calibration.baseline import require_harmless, with_baseline
from weightwatch.calibration.level import Level, needed, require_rate
from weightwatch.calibration.references import Reference, alike, far
from weightwatch.config import Calibration, Config, Metric, Rule
from weightwatch.setup import Setup
from weightwatch.vectors.errors import WeightWatchError

RATE = 0.05
"""Rate of false alarms, if none is asked for."""
CHECKS = 2
"""Consecutive checks, if none are asked for."""


@dataclass(frozen=True)
class Calibrated:
    """A rule, and the scores of the references that its threshold comes from.

    Attributes:
        rule: The rule.
        scores: Score of each reference, by its name; empty without a threshold from references.
        baseline: Names of the runs that its baseline was made of now; empty if none was.
    """

    rule: Rule
    scores: Mapping[str, float]
    baseline: tuple[str, ...] = ()


def to_calibrate(
    settings: Config, setup: Setup, metric: str | None = None, checks: int | None = None, *, baseline: bool = False
) -> list[Rule]:
    """Return the rules that are calibrated: those of the settings, or one for each behaviour direction that is watched.

    Args:
        settings: The settings. Of their rules, those with ``above`` count that are not default rules.
        setup: What the references were watched along.
        metric: Metric of rules that are made. Default: ``over_controls``; ``reach_cosine`` without controls.
        checks: ``for`` of rules that are made. Default: 2.
        baseline: Whether the rules get a baseline. Then those of the settings count that have one, and the other
            directions get one.

    Raises:
        WeightWatchError: There is no such metric; or one is given, or a number of checks, and the settings have rules.
    """
    own = [rule for rule in settings.rules if not rule.default]
    given = [rule for rule in own if rule.above is not None and (rule.baseline is not None or not baseline)]
    if baseline and metric not in (None, "over_baseline"):
        raise WeightWatchError(
            f"A rule with a baseline has the metric over_baseline, not {metric}. Leave out --metric."
        )
    if given and (metric is not None or checks is not None):
        raise WeightWatchError(
            f"The settings have rules ({', '.join(rule.alert for rule in given)}), and these are calibrated with their "
            "own metric and `for`. Leave out --metric and --for, or change the rules."
        )
    if given and not baseline:
        return given
    covered = {rule.direction for rule in given}
    taken = {rule.alert for rule in own}
    chosen = metric or ("over_controls" if setup.controls else "reach_cosine")
    if chosen not in get_args(Metric):
        raise WeightWatchError(f"There is no metric {chosen!r}; there are {', '.join(get_args(Metric))}.")
    if chosen == "over_baseline" and not baseline:
        raise WeightWatchError("The metric over_baseline takes a baseline: pass --baseline 3 for one of three runs.")
    made = [
        Rule.model_validate(
            {
                "alert": _free(name, "over-baseline" if baseline else "calibrated", taken),
                "direction": name,
                "metric": "reach_cosine" if baseline else chosen,  # until it has its baseline
                "above": 0.0,
                "for": checks or CHECKS,
            }
        )
        for name in setup.directions
        if name not in covered
    ]
    return [*given, *made]


def calibrate(
    references: Sequence[Reference],
    rules: Sequence[Rule],
    rate: float = RATE,
    accept: Collection[str] = (),
    baseline: int = 0,
) -> list[Calibrated]:
    """Give rules thresholds such that a harmless run like the references raises any of them at a known rate.

    Each rule gets an equal part of the rate (Bonferroni), so that together they stay within it. A threshold of
    ``over_controls`` is at least zero: an alert says that the update reaches further along the direction than along any
    control.

    Args:
        references: The harmless runs.
        rules: Rules whose thresholds are replaced; all of them with ``above``.
        rate: Share of harmless runs that may raise an alert, between 0 and 1.
        accept: Names of references that are kept even if they look bad or have not finished. One that has not counts as
            a run of as many steps as it has.
        baseline: How many of the references, the first ones, make a baseline for each rule; see ``Baseline``. The
            others give the threshold. If there are none, it is 3, and not calibrated.

    Raises:
        WeightWatchError: The references are too few for the rate, are not alike, or one of them is named twice, looks
            bad or has not finished; a rule fires ``below``, or does not fit what they were watched for; one that is
            accepted is none of them.
    """
    rest = references[baseline:]
    level = level_of(len(references), rules, rate, baseline)
    _once(references)
    accepted = _accepted(references, accept)
    for each in references:
        if each.unfinished and each.name not in accepted:
            raise WeightWatchError(
                f"{each.name} is not a whole run: {each.unfinished}. Leave it out, or let it finish; to keep it as a "
                f"run of {each.readings[-1].step} steps, pass --accept {each.name}."
            )
    if baseline:
        for rule in rules:
            require_harmless(rule, references[:baseline], accepted)
        rules = [with_baseline(rule, references[:baseline], rest) for rule in rules]
    made = [Calibrated(rule, {}) if level is None else _calibrated(rest, rule, level, accepted) for rule in rules]
    return [replace(each, baseline=tuple(run.name for run in references[:baseline])) for each in made]


def level_of(runs: int, rules: Sequence[Rule], rate: float, baseline: int = 0) -> Level | None:
    """Return the level of each of some rules that share a rate equally; None if all runs make the baseline.

    Args:
        runs: Number of all runs.
        rules: The rules.
        rate: The rate.
        baseline: How many of the runs make a baseline.

    Raises:
        WeightWatchError: The rate is out of range, or so many runs can't support it for so many rules; a rule fires
            ``below``.
    """
    if runs < baseline:
        raise WeightWatchError(
            f"A baseline of {baseline} runs takes as many, and there are {runs}. Take more, or pass --baseline {runs}."
        )
    below = next((rule for rule in rules if rule.above is None), None)
    if below is not None:
        raise WeightWatchError(f"Rule {below.alert!r} fires below its threshold. Only `above` can be calibrated.")
    part, left = require_rate(rate) / len(rules), runs - baseline
    if baseline and not left:
        return None
    try:
        return Level.of(left, part)
    except WeightWatchError as error:
        told = str(error)
        if baseline:
            told = (
                f"The first {baseline} runs make the baseline, and {left} {'is' if left == 1 else 'are'} left for the "
                f"threshold, which takes {needed(part)} at a rate of {part:.3g} a rule. Pass --baseline {runs} to make "
                "a baseline of all."
            )
        elif len(rules) > 1:
            told = (
                f"{len(rules)} rules share a rate of {rate:g}, which takes {needed(part)} reference runs, and there "
                f"are {left}. Calibrate fewer rules, or train more references."
            )
        hint = "" if baseline else " A baseline of few runs takes no rate: see --baseline."
        raise WeightWatchError(told + hint) from error


def _calibrated(references: Sequence[Reference], rule: Rule, level: Level, accept: Collection[str]) -> Calibrated:
    setup = alike(references, rule)
    if rule.baseline is not None:
        setup = _joined(setup, rule.baseline.setup)
        _require_fit(references, rule, rule.baseline, setup)
    scores = {each.name: each.score(rule) for each in references}
    strange = [name for name in far(scores.items()) if name not in accept]
    if strange:
        highest = max(scores[name] for name in strange)
        raise WeightWatchError(
            f"{', '.join(strange)}: {rule.direction} {rule.metric} reaches {highest:.3g}, far above the other "
            f"references ({_range(scores, strange)}). Look at its data, and leave the run out if it is not harmless; "
            f"to keep it as it is, pass --accept {strange[0]}."
        )
    calibration = Calibration(runs=level.runs, rate=level.rate, bound=round(level.bound, 4), setup=setup)
    threshold = level.threshold(list(scores.values()))
    if rule.metric in ("over_controls", "over_baseline"):
        threshold = max(threshold, 0.0)  # harmless data of another kind may reach almost as far as that
    if rule.metric in ("cosine", "reach_cosine") and _up(threshold) >= 1:
        raise WeightWatchError(
            f"The {rule.metric} along {rule.direction} is {threshold:.6g} in a reference, which no run can pass. A "
            "reference that moves along the direction alone is not harmless; or the direction was built from its data."
        )
    made = rule.model_dump(by_alias=True, exclude_none=True) | {"above": _up(threshold)}
    return Calibrated(Rule.model_validate({**made, "calibration": calibration.model_dump()}), scores)


def _free(name: str, again: str, taken: Collection[str]) -> str:
    """Return a name for the rule of a direction that no rule has."""
    numbered = (f"{name}-{again}-{number}" for number in count(2))
    return next(each for each in chain((f"{name}-drift", f"{name}-{again}"), numbered) if each not in taken)


def _joined(setup: Setup, other: Setup) -> Setup:
    """Return a setup for runs that are no longer and no more often checked than those of two setups."""
    lengths = [each.steps for each in (setup, other) if each.steps is not None]
    spacing = max(setup.spacing, other.spacing)
    return setup.model_copy(update={"steps": min(lengths, default=None), "every": spacing, "saves": None})


def _require_fit(references: Sequence[Reference], rule: Rule, baseline: Baseline, setup: Setup) -> None:
    """Refuse references that a baseline was made of, since what is left of them is too small, or of another setup."""
    differences = rule.differences(baseline.setup, setup)
    if differences:
        raise WeightWatchError(
            f"The references are not like the runs of the baseline of rule {rule.alert!r} ({', '.join(differences)}). "
            "Make a baseline anew, with --baseline."
        )
    for each in references:
        if each.identity in baseline.ids:
            raise WeightWatchError(
                f"{each.name} is one of the runs that the baseline of rule {rule.alert!r} was made of, so it can't be "
                "a reference of its threshold, too. Leave it out."
            )


def _accepted(references: Sequence[Reference], accept: Collection[str]) -> set[str]:
    """Return the names of the references that are accepted, however their folders are written.

    Raises:
        WeightWatchError: One that is accepted is no reference.
    """
    places = {Path(each.name).resolve(): each.name for each in references}
    places.update({each.record.resolve(): each.name for each in references})
    unknown = [name for name in accept if Path(name).resolve() not in places]
    if unknown:
        raise WeightWatchError(f"--accept names {unknown[0]}, which is none of the runs. Pass it as it is named there.")
    return {places[Path(name).resolve()] for name in accept}


def _up(threshold: float) -> float:
    """Round to six digits, upwards, so that no reference passes the threshold."""
    return float(Context(prec=6, rounding=ROUND_CEILING).create_decimal(repr(threshold)))


def _once(references: Sequence[Reference]) -> None:
    norms = [{reading.step: reading.update_norm for reading in each.readings if reading.step} for each in references]
    for number, each in enumerate(references):
        for other, first in enumerate(references[:number]):
            if (each.run and each.run == first.run) or _same(norms[number], norms[other]):
                raise WeightWatchError(
                    f"{each.name} is the same run as {first.name}, or has its seed: their figures are the same. A run "
                    "counts once; leave one of them out."
                )


def _same(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    """Whether two runs have the same norms at all steps that both were checked at. Two seeds never have."""
    shared = one.keys() & other.keys()
    return bool(shared) and all(one[step] == other[step] for step in shared)


def _range(scores: Mapping[str, float], without: Collection[str]) -> str:
    others = [score for name, score in scores.items() if name not in without]
    return f"{min(others):.3g} to {max(others):.3g}"
