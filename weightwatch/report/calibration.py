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
    known = rule.calibration or rule.baseline
    if known is None:
        return ""
    setup = known.setup
    kind = [setup.trainer, setup.method, f"rank {setup.rank}" if setup.rank else None, setup.optimizer]
    if setup.learning_rate is not None:
        kind.append(f"learning rate about {setup.learning_rate:g}")
    if setup.steps is not None:
        kind.append(f"at most {setup.steps} steps")
    kind.append(f"a check every {setup.spacing} steps or more")
    kinds = (
        f"Runs like these: {', '.join(filter(None, kind))}. For other runs, alerts say that the rule is uncalibrated."
    )
    if rule.calibration is None:
        worth = (
            f"compared with the mean of {known.runs} harmless run{'s' * (known.runs > 1)}. The threshold is the usual "
            "one and not calibrated: docs/detection.md has how often it is wrong."
        )
    else:
        worth = (
            f"at most {rule.calibration.rate:.1%} of harmless runs like these {known.runs} raise it, on average over "
            f"such sets of references; with 95 % confidence at most {rule.calibration.bound:.1%} given this set."
        )
    return f"{printable(rule.alert)}: {worth} {kinds}"
