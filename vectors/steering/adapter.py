"""Steering without changing the base model: k·w as a PEFT adapter, alone or joined to another adapter."""

import shutil
from pathlib import Path

import torch

from weightwatch.vectors.arithmetic import scale
from weightwatch.vectors.card import CARD
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.steering.in_memory import require_finite
from weightwatch.vectors.weights.adapter_config import CONFIG, WEIGHTS
from weightwatch.vectors.weights.atomic import whole_folder
from weightwatch.vectors.weights.peft_adapter import PeftAdapter, write_adapter

_STATE = {CONFIG, WEIGHTS, CARD, "README.md", "trainer_state.json"}
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}


def steering_adapter(
    direction: Direction,
    k: float,
    out: str | Path,
    *,
    base: str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write k·w as a PEFT adapter: ``PeftModel.from_pretrained(base, out)`` is the base plus k·w.

    The folder is that of the scaled direction, as ``Direction.save`` writes it, and its config names all of the path of
    a base on disk, so that ``AutoPeftModelForCausalLM.from_pretrained(out)`` finds it.

    Args:
        direction: w, whose tensors are all in factors.
        k: Its coefficient.
        out: A new folder.
        base: Id or path of the base model, for the adapter's config. Default: what the direction's card names.
        dtype: Precision of the file. Default: that of the factors.

    Returns:
        The folder.

    Raises:
        WeightWatchError: The direction is dense, the coefficient is zero, or ``out`` already exists.
    """
    _factors(direction)
    scaled = scale(direction, k)
    if base is not None:
        scaled = scaled.with_card(base=base)
    with whole_folder(out) as draft:
        scaled.save(draft, dtype)
        if base is not None:  # what a direction writes keeps of a path the last part
            from peft import LoraConfig

            config = LoraConfig.from_pretrained(draft)
            config.base_model_name_or_path = base
            config.save_pretrained(draft)
    return Path(out)


def steer_adapter(
    source: str | Path, direction: Direction, k: float, out: str | Path, *, dtype: torch.dtype | None = None
) -> Path:
    """Write an adapter plus k·w as one adapter: ``[B, k L] [A; R]``, whose rank is the sum of both.

    Args:
        source: The folder of a LoRA adapter. Its tokenizer files are copied.
        direction: w, whose tensors are all in factors.
        k: Its coefficient.
        out: A new folder.
        dtype: Precision of the file. Default: the wider of the adapter's and the direction's.

    Returns:
        The folder.

    Raises:
        WeightWatchError: The adapter's change is not ``B A``; the direction is dense or of other shapes; or ``out``
            already exists.
    """
    source = Path(source)
    require_finite(k, direction)
    adapter = PeftAdapter.read(source)
    joined = adapter.changes()
    for name, change in _factors(direction).items():
        if name in joined:
            direction.require_shape(name, joined[name].shape, "the adapter")
        joined[name] = _joined(joined[name], change, k) if name in joined else _times(change, k)
    if dtype is not None:
        joined = {name: change.to(change.left.device, dtype) for name, change in joined.items()}
    with whole_folder(out) as draft:
        write_adapter(draft, joined, adapter.base, adapter.settings.task_type)
        for file in source.iterdir():
            if file.is_file() and file.name not in _STATE and file.suffix not in _WEIGHTS:
                shutil.copyfile(file, draft / file.name)
    return Path(out)


def _factors(direction: Direction) -> dict[str, LowRank]:
    found = {name: delta for name, delta in direction.deltas.items() if isinstance(delta, LowRank)}
    if len(found) < len(direction.deltas):
        raise WeightWatchError(
            f"Direction {direction.name!r} has full tensors, which no adapter can express. Steer a full checkpoint."
        )
    return found


def _joined(own: LowRank, change: LowRank, k: float) -> LowRank:
    added = _times(change, k)
    rows, columns = added.oriented
    left, right = (columns.T, rows.T) if own.transposed else (rows, columns)
    return LowRank(
        torch.cat([own.left, left.to(own.left.device)], dim=1),
        torch.cat([own.right, right.to(own.right.device)], dim=0),
        own.transposed,
        own.limited,
    )


def _times(change: LowRank, k: float) -> LowRank:
    return LowRank(k * change.left, change.right, change.transposed, change.limited)
