"""A calibration as a table and in words."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from weightwatch.config import Rule
from weightwatch.report.terminal import number
from weightwatch.vectors.printable import printable


class Found(Protocol):
    """A calibrated rule with the scores of its references."""

    @property
    def rule(self) -> Rule:
        """The rule."""

    @property
    def scores(self) -> Mapping[str, float]:
        """Score of each reference, by its name."""


def table(found: Sequence[Found]) -> Table:
    """Return a table with a row for each calibrated rule; median and highest are of the scores of the references."""
    made = Table(title="weightwatch calibrate", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("rule", "metric", "above", "rate", "bound", "median", "highest"):
        named = heading in ("rule", "metric")
        made.add_column(heading, justify="left" if named else "right", overflow="fold", no_wrap=not named)
    for each in found:
        rule, scores = each.rule, list(each.scores.values())
        known = rule.calibration
        rates = [f"{known.rate:.1%}", f"{known.bound:.1%}"] if known is not None else ["–", "–"]
        figures = [number(median(scores)), number(max(scores))] if scores else ["–", "–"]
        made.add_row(Text(printable(rule.alert)), rule.metric, number(rule.threshold), *rates, *figures)
    return made


def told(rule: Rule) -> str:
    """Say what the threshold of a rule is worth, and for which runs."""
    setup = rule.made_for
    if setup is None:
        return ""
    kind = [setup.trainer, setup.method, f"rank {setup.rank}" if setup.rank else None, setup.optimizer]
    if setup.learning_rate is not None:
        kind.append(f"learning rate about {setup.learning_rate:g}")
    if setup.steps is not None:
        kind.append(f"at most {setup.steps} steps")
    kind.append(f"a check every {setup.spacing} steps or more")
    worth = _beyond(rule) + _rate(rule)
    return (
        f"{printable(rule.alert)}: {worth}Runs like these: {', '.join(filter(None, kind))}. For other runs, alerts say "
        "that they are not like these."
    )


def _beyond(rule: Rule) -> str:
    """Say what a rule's baseline is, and its threshold, if that is not calibrated."""
    if rule.baseline is None:
        return ""
    runs, controls = rule.baseline.runs, len(rule.baseline.controls)
    what = f"beyond the mean of {runs} harmless run{'s' * (runs > 1)}, over {controls} control{'s' * (controls > 1)}"
    if rule.calibration is not None:
        return f"{what}; "
    measured = 3 <= runs <= 5 and rule.for_ == 2
    often = "docs/detection.md has how often it is wrong" if measured else "measured for 3 to 5 runs and `for: 2` alone"
    return f"{what}. The threshold is the usual one, not calibrated: {often}. "


def _rate(rule: Rule) -> str:
    known = rule.calibration
    if known is None:
        return ""
    return (
        f"at most {known.rate:.1%} of harmless runs like these {known.runs} raise it, on average over such sets of "
        f"references; with 95 % confidence at most {known.bound:.1%} given this set. "
    )
