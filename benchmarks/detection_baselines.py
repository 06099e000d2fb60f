"""How well rules with a baseline do, by the runs that make it, the controls and the threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from benchmarks.detection_scores import (
    BANK,
    CONTROLS,
    FEW,
    REFERENCES,
    Row,
    Task,
    harmful,
    harmless,
    is_early,
    kept,
    over_baseline,
    task_of,
)
from benchmarks.rates import exact
from weightwatch.calibration.baseline import THRESHOLD

Plain: TypeAlias = Mapping[Task, Sequence[Row]]
"""Harmless runs of each task."""
_SHUFFLED = [f"bank-{number}" for number in range(1, BANK + 1)]
_LEAST, _MOST = 8, 18


@dataclass(frozen=True)
class Way:
    """A rule with a baseline.

    Attributes:
        runs: Number of runs of the baseline.
        threshold: Its threshold; None: the largest of further harmless runs, 19 runs in all.
        controls: The controls. Default: all.
        own: Whether the baseline is of the run's own task; else it is of the other one.
    """

    runs: int
    threshold: float | None = THRESHOLD
    controls: Sequence[str] = (*CONTROLS, *_SHUFFLED)
    own: bool = True

    def baselines(self, plain: Plain, at: int = 0) -> Plain:
        """Return the runs that make the baseline of each task, from some place on."""
        other = {task: next(each for each in plain if each != task and each[:-1] == task[:-1]) for task in plain}
        return {task: plain[task if self.own else other[task]][at : at + self.runs] for task in plain}

    def told(self) -> list[str]:
        """Return the first cells of its line."""
        whose = "the task" if self.own else "the other task"
        named = len(set(CONTROLS) & set(self.controls))
        shuffled = f"{len(self.controls) - named} shuffled"
        threshold = f"{self.threshold:g}" if self.threshold is not None else f"{REFERENCES - self.runs} runs"
        others = {0: "", 1: ", careless", len(CONTROLS): ", 3 others"}[named]
        return [f"{self.runs} of {whose}", shuffled + others, threshold]


WAYS = (
    Way(3),
    Way(1),
    Way(5),
    Way(3, THRESHOLD - 1),
    Way(3, THRESHOLD + 1),
    Way(3, None),
    Way(3, controls=_SHUFFLED),
    Way(3, THRESHOLD + 1, _SHUFFLED),
    Way(3, controls=["careless", *_SHUFFLED]),
    Way(3, controls=_SHUFFLED[:FEW]),
    Way(3, controls=[*CONTROLS, *_SHUFFLED[:FEW]]),
    Way(3, controls=[*CONTROLS, *_SHUFFLED[:5]]),
    Way(3, own=False),
)


def print_baselines(rows: Sequence[Row]) -> None:
    """Print how often runs pass, for each way.

    The first runs of each task make its baseline. The rate of fresh runs is given over other baselines, too: as many as
    there are without a run in common among the first 18 of each task, as mean and range.
    """
    plain: dict[Task, list[Row]] = {}
    for row in rows:
        plain.setdefault(task_of(row), []).extend([row] if row["data"] == "plain" else [])
    if len(plain) < 2 or min(map(len, plain.values())) < _LEAST:
        return
    print("\n| baseline | controls | above | fresh harmless runs | 95 % | over all baselines ", end="")
    print("| other harmless data | harmful runs |\n", "|---" * 8, "|", sep="")
    few = min(map(len, plain.values()))
    for way in WAYS:
        if way.threshold is None and few <= REFERENCES:
            continue
        places = range(0, min(_MOST, few) - way.runs + 1, way.runs) if way.threshold is not None else (0,)
        found = [_passed(rows, plain, way, at) for at in places]
        fresh, other, bad, early = found[0]
        rates = [100 * count / of for (count, of), *_ in found]
        low, high = exact(*fresh)
        spread = f"{fmean(rates):.1f} % ({min(rates):.1f} to {max(rates):.1f})" if len(found) > 1 else "–"
        cells = [*way.told(), f"{fresh[0]} of {fresh[1]}", f"{low:.1%} to {high:.1%}", spread]
        cells += [f"{other[0]} of {other[1]}", f"{bad[0]} of {bad[1]}, {early} before they turn"]
        print("|", " | ".join(cells), "|")


def _passed(
    rows: Sequence[Row], plain: Plain, way: Way, at: int
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """Return how many of how many runs pass: fresh harmless ones, those on other harmless data, and harmful ones.

    The last number is how many of the harmful ones pass before they turn.
    """
    baselines = way.baselines(plain, at)
    scores = {task: over_baseline(runs, way.controls) for task, runs in baselines.items()}
    used = [row for runs in baselines.values() for row in runs]
    limits = dict.fromkeys(plain, way.threshold or 0.0)
    if way.threshold is None:
        further = {task: runs[way.runs : REFERENCES] for task, runs in plain.items()}
        limits = {task: max(kept(row, scores[task]) for row in runs) for task, runs in further.items()}
        used += [row for runs in further.values() for row in runs]
    groups = (
        [row for row in rows if row["data"] == "plain" and not any(row is each for each in used)],
        [row for row in rows if harmless(row) and row["data"] != "plain"],
        [row for row in rows if harmful(row)],
    )
    fresh, other, bad = (
        (sum(kept(row, scores[task_of(row)]) > limits[task_of(row)] for row in group), len(group)) for group in groups
    )
    return fresh, other, bad, sum(is_early(row, scores[task_of(row)], limits[task_of(row)]) for row in groups[2])
