"""Harmless runs that a rule is calibrated on: their records, and the score that a rule gives each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, pairwise
from math import inf
from pathlib import Path
from statistics import quantiles

from weightwatch.config import OVER_CONTROLS, Rule
from weightwatch.reading.reading import Reading
from weightwatch.record.history import READINGS, History
from weightwatch.record.recorded_run import is_live, record_of, whole_lines
from weightwatch.record.run_folder import run_of
from weightwatch.rules.engine import worst
from weightwatch.setup import SETUP, Setup
from weightwatch.vectors.errors import WeightWatchError

ENOUGH_RUNS = 8
"""Runs from which on one of them can be called far from the others."""


@dataclass(frozen=True)
class Reference:
    """The record of one harmless run.

    Attributes:
        name: Its folder, as it was given.
        record: The folder of its record.
        setup: How it was trained and watched.
        readings: Its readings, oldest first. Before the first step nothing has moved.
        run: Id of the run; empty if its record has none.
        unfinished: Why its figures are not those of a whole run; empty if they are.
    """

    name: str
    record: Path
    setup: Setup
    readings: Sequence[Reading]
    run: str = ""
    unfinished: str = ""

    @classmethod
    def load(cls, folder: str | Path) -> "Reference":
        """Read the record of a run.

        Args:
            folder: The run's output folder, or the folder ``weightwatch`` in it.

        Raises:
            WeightWatchError: There is no record, it can't be read, a line of it is damaged, it does not say how the run
                was trained, or the run has no check after its first step.
        """
        try:
            return cls._read(folder)
        except OSError as error:
            raise WeightWatchError(f"{folder} can't be read ({error.strerror}). Name a run.") from error

    @classmethod
    def _read(cls, folder: str | Path) -> "Reference":
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
        readings = list(islice(History(record).readings(), whole_lines(record / READINGS)))
        if not any(reading.step and reading.update_norm > 0 for reading in readings):
            raise WeightWatchError(f"{record} has no reading after step 0. Leave it out, or check more often.")
        why = "it still goes on" if is_live(record) else _unfinished(readings, setup)
        return cls(str(folder), record, setup, readings, run_of(record) or "", why)

    @property
    def identity(self) -> str:
        """What tells the run from others: its id, or a digest of the norms of its update."""
        norms = [(reading.step, reading.update_norm) for reading in self.readings]
        return self.run or sha256(repr(norms).encode()).hexdigest()[:12]

    @property
    def steps(self) -> int | None:
        """The number of steps that its figures are of; None if the number that was planned is not known."""
        planned = self.setup.steps
        return None if planned is None else min(planned, self.readings[-1].step)

    def score(self, rule: Rule) -> float:
        """Return the largest threshold that the rule would still pass in this run, for all of its checks.

        With ``for: n`` it is the largest, over all n consecutive checks, of the smallest value in them. As for the
        rule engine, no condition is met at a check where nothing has moved.

        Raises:
            WeightWatchError: The run was not watched along the rule's direction, had no controls that its metric needs,
                has no such layer or module, or has fewer checks than ``for``.
        """
        try:
            read = [(reading.update_norm > 0, worst(rule, reading)[1]) for reading in self.readings]
        except WeightWatchError as error:
            raise WeightWatchError(f"{self.name}: {error}") from error
        values = [value if moved and value is not None else -inf for moved, value in read]
        score = max((min(values[at : at + rule.for_]) for at in range(len(values) - rule.for_ + 1)), default=-inf)
        if score == -inf:
            checks = sum(moved and value is not None for moved, value in read)
            raise WeightWatchError(
                f"{self.name} has {checks} checks, and rule {rule.alert!r} takes {rule.for_} in a row. Leave the "
                "run out, or set a smaller `for`."
            )
        return score


def alike(references: Sequence[Reference], rule: Rule, *, controls: bool = False) -> Setup:
    """Return the setup that a rule is calibrated for: what all references have, which are alike.

    Args:
        references: The references.
        rule: The rule.
        controls: Whether the controls matter, even if the rule's metric does not take them.

    More steps and more frequent checks make the score of a run larger. So the rule counts for runs that are no longer
    than the shortest reference, and checked no more often than the one that was checked least. The learning rates of
    all references are within a factor of 1.5, and it counts for those about their median.

    Raises:
        WeightWatchError: A reference was trained or watched otherwise; the message says which, and in what.
    """
    lengths = [each.steps for each in references]
    rates = sorted(rate for each in references if (rate := each.setup.learning_rate) is not None)
    shared = {
        "steps": min((length for length in lengths if length is not None), default=None),
        "every": max(each.setup.spacing for each in references),
        "saves": None,
    }
    least = references[0].setup.model_copy(update={**shared, "learning_rate": rates[0] if rates else None})
    for each, length in zip(references, lengths, strict=True):
        setup = each.setup.model_copy(update={**shared, "steps": length and shared["steps"]})
        differences = least.differences(setup, rule.direction, controls=controls or rule.metric in OVER_CONTROLS)
        if differences:
            raise WeightWatchError(
                f"{each.name} is not a run like the others ({', '.join(differences)}), so they can't be exchanged. "
                "Calibrate each kind of run by itself."
            )
    return least.model_copy(update={"learning_rate": rates[len(rates) // 2] if rates else None})


def _unfinished(readings: Sequence[Reading], setup: Setup) -> str:
    """Say why some readings are not those of a whole run; empty if they are."""
    steps = [0, *(reading.step for reading in readings)]
    broken = next(
        (reading.step for reading in readings if any("NaN" in why for why in reading.left_out.values())), None
    )
    if broken is not None:
        return f"some of its weights are NaN or infinite at step {broken}"
    if setup.steps is not None and steps[-1] < setup.steps:
        return f"its last check is at step {steps[-1]} of {setup.steps}"
    gap = next(((one, other) for one, other in pairwise(steps) if other - one > setup.every), None)
    return f"it has no check between the steps {gap[0]} and {gap[1]}" if gap else ""


def far(scores: Iterable[tuple[str, float]]) -> list[str]:
    """Return the names of runs whose score is far above those of the others: by more than three interquartile ranges.

    Such a run may not be as harmless as it was taken for. With fewer than eight runs none can be told.

    Source: Tukey, *Exploratory Data Analysis*, 1977, section 2 (the outer fence).
    """
    found = list(scores)
    if len(found) < ENOUGH_RUNS:
        return []
    low, _, high = quantiles([score for _, score in found], n=4, method="inclusive")
    return [name for name, score in found if score > high + 3 * (high - low)]
