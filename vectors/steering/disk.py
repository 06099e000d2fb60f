"""Steering a model on disk in the form that it has: a checkpoint or an adapter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightwatch.vectors.arithmetic import add
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.steering.adapter import steer_adapter, steering_adapter
from weightwatch.vectors.steering.checkpoint import matched, steer_checkpoint
from weightwatch.vectors.weights.adapter_config import is_adapter
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.reader import Unmapped
from weightwatch.vectors.weights.sources import require_local


@dataclass(frozen=True)
class Steered:
    """A steered model on disk.

    Attributes:
        out: Its folder.
        form: ``checkpoint`` or ``adapter``.
        model: The model before steering.
        terms: The directions by name, each with its coefficient.
        tensors: Number of tensors that changed.

    Example:
        >>> print(Steered(Path("out"), "checkpoint", "base", [("evil", -0.5), ("style", 0.2)], 12))
        out: checkpoint, base - 0.5·evil + 0.2·style, 12 tensors changed
    """

    out: Path
    form: str
    model: str
    terms: Sequence[tuple[str, float]]
    tensors: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        directions = [{"name": name, "coefficient": k} for name, k in self.terms]
        form = {"out": str(self.out), "form": self.form, "model": self.model}
        return {**form, "directions": directions, "tensors": self.tensors}

    def __str__(self) -> str:
        sums = " ".join(f"{'+' if k >= 0 else '-'} {abs(k):g}·{name}" for name, k in self.terms)
        return f"{self.out}: {self.form}, {self.model} {sums}, {self.tensors} tensors changed"


def steer_on_disk(
    model: str,
    terms: Sequence[tuple[str, float]],
    out: Path,
    *,
    as_adapter: bool = False,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Steered:
    """Add Σ kᵢ wᵢ to a model on disk and write the result to a new folder.

    A checkpoint gives a checkpoint, an adapter gives an adapter. The sum of several directions is computed in memory;
    a single direction is read block by block.

    Args:
        model: Folder of a checkpoint or an adapter, or the Hub id of one in the local cache.
        terms: Name, path or Hub id of each direction wᵢ, with its coefficient kᵢ.
        out: A new folder.
        as_adapter: Write Σ kᵢ wᵢ alone, as a PEFT adapter of the checkpoint.
        dtype: Precision to write. Default: that of the model.
        progress: Called with the bytes of the checkpoint done so far and in total.

    Raises:
        WeightWatchError: There is no such model or direction; or see ``add``, ``steer_checkpoint``, ``steer_adapter``
            and ``steering_adapter``.
    """
    folder = require_local(model)
    direction, k = _sum(terms)
    form = "adapter"
    if is_adapter(folder):
        steer_adapter(folder, direction, k, out, dtype=dtype)
    else:
        saved = under_names(Checkpoint(folder, Unmapped), direction.deltas)
        if as_adapter:
            for target, name in matched(saved, direction):
                direction.require_shape(name, saved.shape(target), str(saved.path))
            base = str(folder) if Path(model).is_dir() else model
            steering_adapter(direction, k, out, base=base, dtype=dtype)
        else:
            form = "checkpoint"
            counted = None if progress is None else _counted(progress, saved)
            steer_checkpoint(saved, direction, k, out, dtype=dtype, progress=counted)
    return Steered(out, form, model, terms, len(direction.deltas))


def _sum(terms: Sequence[tuple[str, float]]) -> tuple[Direction, float]:
    loaded = [Direction.load(name, Unmapped) for name, _ in terms]
    if len(loaded) == 1:
        return loaded[0], terms[0][1]
    return add(*loaded, weights=[k for _, k in terms]), 1.0


def _counted(progress: Callable[[int, int], None], saved: Checkpoint) -> Callable[[int], None]:
    """Return a function that adds up the bytes done since the last call."""
    total, done = sum(file.stat().st_size for file in saved.files), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    return advance
