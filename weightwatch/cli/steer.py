"""What ``weightwatch steer`` does: a model on disk plus multiples of directions, with progress on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from weightwatch.vectors.arithmetic import add
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.steering.adapter import steer_adapter, steering_adapter
from weightwatch.vectors.steering.checkpoint import matched, steer_checkpoint
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.peft_adapter import CONFIG
from weightwatch.vectors.weights.reader import Unmapped
from weightwatch.vectors.weights.sources import local_folder


@dataclass(frozen=True)
class Steered:
    """What was written.

    Attributes:
        out: The new folder.
        form: ``checkpoint`` or ``adapter``.
        model: What was added to.
        terms: Names of the directions, each with its coefficient.
        tensors: How many tensors were changed.
    """

    out: Path
    form: str
    model: str
    terms: Sequence[tuple[str, float]]
    tensors: int

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document."""
        directions = [{"name": name, "coefficient": k} for name, k in self.terms]
        form = {"out": str(self.out), "form": self.form, "model": self.model}
        return {**form, "directions": directions, "tensors": self.tensors}

    def __str__(self) -> str:
        sums = " ".join(f"{'+' if k >= 0 else '-'} {abs(k):g}·{name}" for name, k in self.terms)
        return f"{self.out}: {self.form}, {self.model} {sums}, {self.tensors} tensors changed"


class Steering:
    """A model and what is to be added to it.

    Args:
        model: Folder of a checkpoint or an adapter, or the Hub id of one in the cache.
        directions: Names, paths or Hub ids, each with ``=k`` behind it or without.
        by: The coefficient of those without.

    Raises:
        WeightWatchError: There is no such model or direction, or a coefficient is no number.
    """

    def __init__(self, model: str, directions: Sequence[str], by: float) -> None:
        folder = local_folder(model)
        if folder is None:
            raise WeightWatchError(
                f"{model} is no folder here, and the Hub's cache has no model of that id. Download it first: "
                f"hf download {model}"
            )
        self._model, self._folder = model, folder
        self._terms = [_term(text, by) for text in directions]
        loaded = [Direction.load(name, Unmapped) for name, _ in self._terms]
        self._direction, self._k = loaded[0], self._terms[0][1]
        if len(loaded) > 1:  # of full tensors, the sum is held in memory
            self._direction, self._k = add(*loaded, weights=[k for _, k in self._terms]), 1.0

    def write(self, out: Path, aside: Console, *, as_adapter: bool, dtype: str | None) -> Steered:
        """Write the sum.

        Args:
            out: A new folder.
            aside: For progress.
            as_adapter: Whether a checkpoint is left as it is and only what is added to it is written.
            dtype: Name of the precision to write. Default: as stored.

        Raises:
            WeightWatchError: See ``steer_checkpoint``, ``steer_adapter`` and ``steering_adapter``.
        """
        precision = None if dtype is None else getattr(torch, dtype)
        form = "adapter"
        if (self._folder / CONFIG).is_file():
            steer_adapter(self._folder, self._direction, self._k, out, dtype=precision)
        else:
            stored = under_names(Checkpoint(self._folder, Unmapped), self._direction.deltas)
            if as_adapter:
                self._require_shapes(stored)
                base = str(self._folder) if Path(self._model).is_dir() else self._model
                steering_adapter(self._direction, self._k, out, base=base, dtype=precision)
            else:
                form = "checkpoint"
                self._write_checkpoint(stored, out, aside, precision)
        return Steered(out, form, self._model, self._terms, len(self._direction.deltas))

    def _write_checkpoint(self, stored: Checkpoint, out: Path, aside: Console, dtype: torch.dtype | None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=aside, transient=True) as progress:
            task = progress.add_task(f"writing {out.name}", total=sum(file.stat().st_size for file in stored.files))
            steer_checkpoint(
                stored, self._direction, self._k, out, dtype=dtype, progress=lambda size: progress.advance(task, size)
            )

    def _require_shapes(self, stored: Checkpoint) -> None:
        for target, name in matched(stored, self._direction):
            if stored.shape(target) != self._direction.shape(name):
                raise WeightWatchError(
                    f"{target} has shape {stored.shape(target)} in {self._model} where the direction has "
                    f"{self._direction.shape(name)}. Use a direction that was built from this model."
                )


def _term(text: str, by: float) -> tuple[str, float]:
    """Return a direction's name and coefficient; an existing folder may have an equals sign in its name."""
    name, mark, number = text.rpartition("=")
    if not mark or Path(text).exists():
        return text, by
    try:
        k = float(number)
    except ValueError as error:
        raise WeightWatchError(f"{text}: {number!r} is no coefficient. Write it as {name}=-0.5.") from error
    if not isfinite(k):
        raise WeightWatchError(f"{text}: give a finite coefficient.")
    return name, k
