"""Harmless runs that a rule is calibrated on: their records, and the score that a rule gives each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.record.history import READINGS, History
from weightwatch.record.recorded_run import record_of
from weightwatch.rules.engine import worst
from weightwatch.setup import SETUP, Setup
from weightwatch.vectors.errors import WeightWatchError

_ENOUGH = 8
"""Runs from which on one of them can be called far from the others."""


@dataclass(frozen=True)
class Reference:
    """The record of one harmless run.

    Attributes:
        name: Its folder, as it was given.
        record: The folder of its record.
        setup: How it was trained and watched.
        readings: Its readings, oldest first; none of step 0, when nothing has moved.
    """

    name: str
    record: Path
    setup: Setup
    readings: Sequence[Reading]

    @classmethod
    def load(cls, folder: str | Path) -> "Reference":
        """Read the record of a run.

        Args:
            folder: The run's output folder, or the folder ``weightwatch`` in it.

        Raises:
            WeightWatchError: There is no record, a line of it is damaged, it does not say how the run was trained, or
                the run has no check after its first step.
        """
        record = record_of(Path(folder))
        if record is None:
            raise WeightWatchError(
                f"{folder} has no {READINGS}, neither itself nor in a folder weightwatch. Name a run."
            )
        setup = Setup.read(record)
        if setup is None:
            raise WeightWatchError(
                f"{record} does not say how its run was trained ({SETUP} is missing or damaged), so it can't be told "
                "for which runs its figures count. Watch the run again with this version, or leave it out."
            )
        readings = [reading for reading in History(record).readings() if reading.step and reading.update_norm > 0]
        if not readings:
            raise WeightWatchError(f"{record} has no reading after step 0. Leave it out, or check more often.")
        return cls(str(folder), record, setup, readings)

    def score(self, rule: Rule) -> float:
        """Return the largest threshold that the rule would still pass in this run, for all of its checks.

        With ``for: n`` it is the largest, over all n consecutive checks, of the smallest value in them.

        Raises:
            WeightWatchError: The run was not watched along the rule's direction, had no controls that its metric needs,
                has no such layer or module, or has fewer checks than ``for``.
        """
        try:
            values = [worst(rule, reading)[1] for reading in self.readings]
        except WeightWatchError as error:
            raise WeightWatchError(f"{self.name}: {error}") from error
        if len(values) < rule.for_:
            raise WeightWatchError(
                f"{self.name} has {len(values)} checks, and rule {rule.alert!r} takes {rule.for_} in a row. Leave the "
                "run out, or set a smaller `for`."
            )
        return max(min(values[at : at + rule.for_]) for at in range(len(values) - rule.for_ + 1))


def alike(references: Sequence[Reference], rule: Rule) -> Setup:
    """Return the setup that a rule is calibrated for: that of the longest of the references, which all are alike.

    Raises:
        WeightWatchError: A reference was trained or watched otherwise; the message says which, and in what.
    """
    longest = max(references, key=lambda each: each.setup.steps or 0).setup
    frequent = longest.model_copy(update={"every": min(each.setup.every for each in references)})
    for each in references:
        differences = rule.differences(frequent, each.setup)
        if differences:
            raise WeightWatchError(
                f"{each.name} is not a run like the others ({', '.join(differences)}), so they can't be exchanged. "
                "Calibrate each kind of run by itself."
            )
    return frequent


def far(scores: Iterable[tuple[str, float]]) -> list[str]:
    """Return the names of runs whose score is far above those of the others: by more than three interquartile ranges.

    Such a run may not be as harmless as it was taken for. With fewer than eight runs none can be told.

    Source: Tukey, *Exploratory Data Analysis*, 1977, section 2 (the outer fence).
    """
    found = list(scores)
    if len(found) < _ENOUGH:
        return []
    low, _, high = quantiles([score for _, score in found], n=4, method="inclusive")
    return [name for name, score in found if score > high + 3 * (high - low)]
