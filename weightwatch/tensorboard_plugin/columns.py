"""The figures of a run as columns: for each direction, an array of metrics × checks × parts of the model."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from weightwatch.config import Figure

METRICS: tuple[Figure, ...] = get_args(Figure)

Kind: TypeAlias = Literal["model", "layers", "modules"]
Part: TypeAlias = tuple[Kind, str]
"""The whole model, a layer or a kind of module, and its name."""
Floats: TypeAlias = NDArray[np.float32]

MODEL: Part = ("model", "")

_figures = itemgetter(*METRICS)


class Block:
    """The figures of one direction.

    Attributes:
        parts: The parts of the model, in the order of the last axis of ``values``.
        values: Shape (metrics, capacity, parts). What was not recorded is NaN.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.values: Floats = np.full((len(METRICS), 0, 0), np.nan, np.float32)

    def put(self, place: int, found: Mapping[str, Any]) -> None:
        """Write the figures of one check.

        Args:
            place: Number of the check.
            found: The direction's entry in a line of readings.jsonl.
        """
        layers, modules = (_mapping(found.get(kind)) for kind in ("layers", "modules"))
        parts: list[Part] = [MODEL, *(("layers", name) for name in layers), *(("modules", name) for name in modules)]
        figures = _array([found, *layers.values(), *modules.values()])
        known = self.parts
        if parts != known:
            known = [*known, *(part for part in parts if part not in set(known))]
        self._reserve(place + 1, len(known))
        self.parts = known  # after the array has room for them: another thread may be reading
        if parts == known:
            self.values[:, place] = figures
            return
        at = {part: column for column, part in enumerate(known)}
        self.values[:, place] = np.nan
        self.values[:, place, [at[part] for part in parts]] = figures

    def of(self, metric: Figure, kind: Kind, count: int) -> tuple[list[str], Floats]:
        """Return the names of all parts of a kind, and a metric of them in the first checks, shape (count, parts)."""
        parts, values = self.parts, self.values
        columns = [column for column, part in enumerate(parts) if part[0] == kind]
        out = np.full((count, len(columns)), np.nan, np.float32)
        some = values[METRICS.index(metric), :count]
        out[: len(some)] = some[:, columns]
        return [parts[column][1] for column in columns], out

    def _reserve(self, checks: int, parts: int) -> None:
        """Make room, in a new array: another thread may be reading the old one."""
        _, capacity, width = self.values.shape
        if checks <= capacity and parts <= width:
            return
        wider = np.full((len(METRICS), max(capacity, 2 * checks, 16), parts), np.nan, np.float32)
        wider[:, :capacity, :width] = self.values
        self.values = wider


class Columns:
    """The figures of a run, for all directions.

    One thread may add checks while others read.

    Attributes:
        steps: The step of each check.
        checkpoints: The checkpoint of each check, or None.
        blocks: The figures, by direction.
        time: Time of the newest check.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.checkpoints: list[str | None] = []
        self.blocks: dict[str, Block] = {}
        self.time = ""

    def put(self, line: object) -> None:
        """Add a check, or replace the last one by a fuller line of the same step.

        Args:
            line: A line of readings.jsonl, of any version, parsed.

        Raises:
            ValueError: The line is not a reading, or its step is before that of the last check.
        """
        if not isinstance(line, dict) or not isinstance(line.get("directions"), dict):
            raise ValueError("it is not a reading")
        step, last = line.get("step"), self.steps[-1] if self.steps else -1
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError("it has no step")
        if step < last:
            raise ValueError(f"step {step} comes after step {last}")
        place = len(self.steps) - (step == last)
        for name, found in line["directions"].items():
            if isinstance(found, dict):
                block = self.blocks.get(name) or Block()
                block.put(place, found)
                self.blocks = self.blocks | {name: block} if name not in self.blocks else self.blocks
        checkpoint = line.get("checkpoint")
        self.checkpoints[place:] = [checkpoint if isinstance(checkpoint, str) else None]
        self.time = str(line.get("time", ""))
        if step > last:
            self.steps.append(step)  # last, since it makes the check visible


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _array(scores: Sequence[Any]) -> Floats:
    """Return the metrics of scores, shape (metrics, scores); NaN for what is missing, no number or not finite."""
    with np.errstate(over="ignore"):
        try:
            table = np.array([_figures(score) for score in scores], dtype=np.float32)
        except (KeyError, TypeError, ValueError, OverflowError):  # of another version, or damaged
            table = np.array([[_number(score, metric) for metric in METRICS] for score in scores], dtype=np.float32)
    table[~np.isfinite(table)] = np.nan
    return table.T


def _number(score: object, metric: str) -> float:
    value = score.get(metric) if isinstance(score, dict) else None
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
    except OverflowError:
        return np.nan
