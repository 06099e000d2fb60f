"""Rules whose threshold comes from harmless runs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from typing import get_args

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
        scores: Score of each reference, by its name.
    """

    rule: Rule
    scores: Mapping[str, float]


def to_calibrate(settings: Config, setup: Setup, metric: str | None = None, checks: int = CHECKS) -> list[Rule]:
    """Return the rules that are calibrated: those of the settings, or one for each behaviour direction that is watched.

    Args:
        settings: The settings. Of their rules, those with ``above`` count that are not default rules.
        setup: What the references were watched along.
        metric: Metric of rules that are made. Default: ``over_controls``; ``reach_cosine`` without controls.
        checks: ``for`` of rules that are made.

    Raises:
        WeightWatchError: There is no such metric.
    """
    given = [rule for rule in settings.rules if rule.above is not None and not rule.default]
    if given:
        return given
    chosen = metric or ("over_controls" if setup.controls else "reach_cosine")
    if chosen not in get_args(Metric):
        raise WeightWatchError(f"There is no metric {chosen!r}; there are {', '.join(get_args(Metric))}.")
    return [
        Rule.model_validate(
            {"alert": f"{name}-drift", "direction": name, "metric": chosen, "above": 0.0, "for": checks}
        )
        for name in setup.directions
    ]


def calibrate(
    references: Sequence[Reference],
    rules: Sequence[Rule],
    rate: float = RATE,
    accept: Collection[str] = (),
) -> list[Calibrated]:
    """Give rules thresholds such that a harmless run like the references raises any of them at a known rate.

    Each rule gets an equal part of the rate (Bonferroni), so that together they stay within it. A threshold of
    ``over_controls`` is at least zero: an alert says that the update reaches further along the direction than along any
    control.

    Args:
        references: The harmless runs.
        rules: Rules whose thresholds are replaced; all of them with ``above``.
        rate: Share of harmless runs that may raise an alert, between 0 and 1.
        accept: Names of references that are kept even if they look bad.

    Raises:
        WeightWatchError: The references are too few for the rate, are not alike, or one of them is named twice or looks
            bad; a rule fires ``below``, or does not fit what they were watched for.
    """
    below = next((rule for rule in rules if rule.above is None), None)
    if below is not None:
        raise WeightWatchError(f"Rule {below.alert!r} fires below its threshold. Only `above` can be calibrated.")
    _once(references)
    part = require_rate(rate) / len(rules)
    try:
        level = Level.of(len(references), part)
    except WeightWatchError as error:
        if len(rules) == 1:
            raise
        raise WeightWatchError(
            f"{len(rules)} rules share a rate of {rate:g}, which takes {needed(part)} reference runs, and there are "
            f"{len(references)}. Calibrate fewer rules, or train more references."
        ) from error
    return [_calibrated(references, rule, level, accept) for rule in rules]


def _calibrated(references: Sequence[Reference], rule: Rule, level: Level, accept: Collection[str]) -> Calibrated:
    setup = alike(references, rule)
    scores = {each.name: each.score(rule) for each in references}
    strange = [name for name in far(scores.items()) if name not in accept]
    if strange:
        highest = max(scores[name] for name in strange)
        raise WeightWatchError(
            f"{', '.join(strange)}: {rule.direction} {rule.metric} reaches {highest:.3g}, far above the other "
            f"references ({_range(scores, strange)}). Look at its data, and leave the run out if it is not harmless; "
            "to keep it as it is, pass --accept with its name."
        )
    calibration = Calibration(runs=level.runs, rate=level.rate, bound=round(level.bound, 4), setup=setup)
    threshold = level.threshold(list(scores.values()))
    if rule.metric == "over_controls":
        threshold = max(threshold, 0.0)  # harmless data of another kind may reach almost as far as the controls do
    made = rule.model_dump(by_alias=True, exclude_none=True) | {"above": _up(threshold)}
    return Calibrated(Rule.model_validate({**made, "calibration": calibration.model_dump()}), scores)


def _up(threshold: float) -> float:
    """Round to six digits, upwards, so that no reference passes the threshold."""
    return float(Context(prec=6, rounding=ROUND_CEILING).create_decimal(repr(threshold)))


def _once(references: Sequence[Reference]) -> None:
    runs = [(each.readings[0].time, each.readings[-1].time) for each in references]
    for number, run in enumerate(runs):
        if run in runs[:number]:
            first = references[runs.index(run)].name
            raise WeightWatchError(
                f"{references[number].name} is the same run as {first}. A run counts once; leave one of them out."
            )


def _range(scores: Mapping[str, float], without: Collection[str]) -> str:
    others = [score for name, score in scores.items() if name not in without]
    return f"{min(others):.3g} to {max(others):.3g}"
