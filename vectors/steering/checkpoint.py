"""Adding a multiple of a direction to a checkpoint on disk: a new checkpoint, written a block at a time."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightwatch.vectors.card import CARD
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import exact
from weightwatch.vectors.steering.in_memory import AT_ONCE, require_finite, summed
from weightwatch.vectors.weights.atomic import whole_folder
from weightwatch.vectors.weights.checkpoint import FLOATS, INDEX, SINGLE, Checkpoint
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.peft_adapter import CONFIG as ADAPTER
from weightwatch.vectors.weights.reader import DTYPES, Box, Unmapped, boxes
from weightwatch.vectors.weights.tied import matched

Change: TypeAlias = Callable[[Box], Tensor]
"""Gives the part of a change that lies in a box of a stored tensor."""

# What belongs to a checkpoint beside its weights; neither other copies of the weights nor the state of a training.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ckpt", ".distcp"}
_STATE = {"trainer_state.json", "scaler.pt", "latest", INDEX}
_FOLDERS = ("additional_chat_templates",)


def steer_checkpoint(
    source: str | Path | Checkpoint,
    direction: Direction,
    k: float,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write θ + k·w as a new checkpoint with the same shards, beside the configuration and tokenizer of the old one.

    Each tensor is read, added to and written a block at a time, so that memory does not grow with the checkpoint; pass
    a dense direction that was loaded with ``opener=Unmapped`` to keep that on disk, too. Sums are taken in fp32 and
    rounded once. ``out`` appears only when all of it is written.

    Args:
        source: A folder with ``model.safetensors`` or its sharded form; or such a checkpoint, opened under the names
            that its parameters have in the model (``model_names.under_names``), where the files have others.
        direction: w.
        k: Its coefficient.
        out: A new folder.
        dtype: Precision of all weights in the new checkpoint. Default: each as it is stored.
        progress: Called with the number of bytes of the old checkpoint that have been dealt with since the last call.

    Returns:
        The new folder.

    Raises:
        WeightWatchError: The source is no such checkpoint; it lacks a tensor of the direction, or has it in another
            shape or quantised; a sum does not fit the precision; ``out`` is there already. Nothing is left behind.
    """
    stored = source if isinstance(source, Checkpoint) else _opened(Path(source))
    if not stored.path.is_dir():
        raise WeightWatchError(f"{stored.path} is a single file. Pass the folder with its config.json.")
    require_finite(k, direction)
    if dtype is not None and dtype not in _NAMES:
        raise WeightWatchError(f"A checkpoint is not written in {dtype}; pass float32, bfloat16, float16 or None.")
    changes = _changes(stored, direction)
    with whole_folder(out) as draft:
        for file in stored.files:
            _rewrite(file, draft / file.name, changes, k, dtype, progress or (lambda _: None))
        _copy_rest(stored, draft, dtype)
    return Path(out)


def _opened(folder: Path) -> Checkpoint:
    if (folder / ADAPTER).is_file() and not (folder / CARD).is_file():
        raise WeightWatchError(f"{folder} is an adapter: use steer_adapter, or merge it into its base.")
    if (folder / CARD).is_file():
        raise WeightWatchError(f"{folder} is a direction, not a checkpoint. Pass the model that is to be steered.")
    return Checkpoint(folder, Unmapped)


def _changes(stored: Checkpoint, direction: Direction) -> dict[str, Change]:
    """Return what is to be added to each stored tensor, by its name in the files."""
    changes: dict[str, Change] = {}
    for target, name in matched(stored, direction):
        shape, kind = stored.shape(target), stored.dtype(target)
        if kind not in FLOATS:
            raise WeightWatchError(
                f"{target} is stored as {kind} in {stored.path} (quantised?), to which direction {direction.name!r} "
                "can't be added. Use the checkpoint that it was quantised from."
            )
        if shape != direction.shape(name):
            raise WeightWatchError(
                f"{target} has shape {shape} in {stored.path} where direction {direction.name!r} has "
                f"{direction.shape(name)}. Use a direction that was built from this model."
            )
        for part, place in stored.places(target):
            changes[part] = _shifted(direction, name, place)
    return changes


def _shifted(direction: Direction, name: str, place: Box) -> Change:
    """Return the change of a stored tensor that lies at a place of the model's tensor, of which it may be one slice."""

    def change(box: Box) -> Tensor:
        extra = len(place) - len(box)
        inside = (slice(p.start + b.start, p.start + b.stop) for p, b in zip(place[extra:], box, strict=True))
        part = direction.part(name, (*place[:extra], *inside))
        return part.reshape([b.stop - b.start for b in box])

    return change


def _rewrite(
    source: Path,
    target: Path,
    changes: Mapping[str, Change],
    k: float,
    dtype: torch.dtype | None,
    progress: Callable[[int], None],
) -> None:
    """Write one file anew: its tensors in their order, under their names."""
    file = Unmapped(source, progress)
    kinds = {key: _kind(file, key, dtype) for key in file.keys()}  # noqa: SIM118
    ordered = sorted(kinds, key=lambda key: file.get_slice(key).entry["data_offsets"])
    with target.open("wb") as written:
        written.write(_header(file, ordered, kinds))
        for key in ordered:
            change = changes.get(canonical(key))
            if change is None and kinds[key] == file.get_slice(key).get_dtype():
                written.writelines(file.raw(key))
                continue
            for part in _parts(file, key, change, k, kinds[key]):
                written.write(memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy().data))


def _kind(file: Unmapped, key: str, dtype: torch.dtype | None) -> str:
    kind = file.get_slice(key).get_dtype()
    return _NAMES[dtype] if dtype is not None and kind in FLOATS else kind


def _header(file: Unmapped, ordered: Iterable[str], kinds: Mapping[str, str]) -> bytes:
    """Return the first bytes of a safetensors file: the length of its table, and the table."""
    table: dict[str, Any] = {"__metadata__": dict(file.metadata()) or {"format": "pt"}}
    end = 0
    for key in ordered:
        part = file.get_slice(key)
        entry = dict(part.entry)
        first, last = entry["data_offsets"]
        size = last - first
        if kinds[key] != entry["dtype"]:
            size = prod(part.get_shape()) * DTYPES[kinds[key]].itemsize
        table[key] = {**entry, "dtype": kinds[key], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parts(file: Unmapped, key: str, change: Change | None, k: float, kind: str) -> Iterator[Tensor]:
    """Yield the new values of a tensor in the order in which they are stored."""
    part = file.get_slice(key)
    for box in boxes(tuple(part.get_shape()), AT_ONCE):
        values = part[box] if box else file.get_tensor(key)
        new = values.to(torch.promote_types(values.dtype, torch.float32))
        with exact():
            new = (new if change is None else summed(new, change(box), k)).to(DTYPES[kind])
        if not bool((new.isfinite() | ~values.isfinite()).all()):
            raise WeightWatchError(
                f"The new values of {canonical(key)} go beyond the range of {kind}. Pass dtype=torch.bfloat16 or "
                "torch.float32, or take a smaller coefficient."
            )
        yield new


def _copy_rest(stored: Checkpoint, draft: Path, dtype: torch.dtype | None) -> None:
    """Copy what is no weight, and state the new precision where the configuration or the index states the old one."""
    for file in stored.path.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in _STATE and file.name[0] != ".":
            shutil.copyfile(file, draft / file.name)
    for name in _FOLDERS:
        if (stored.path / name).is_dir():
            shutil.copytree(stored.path / name, draft / name)
    if stored.files[0].name != SINGLE:
        index = json.loads((stored.path / INDEX).read_text())
        if dtype is not None and "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] = sum(_data_size(draft / file.name) for file in stored.files)
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    if dtype is not None and (draft / "config.json").is_file():
        config = json.loads((draft / "config.json").read_text())
        (draft / "config.json").write_text(json.dumps(_in_precision(config, dtype), indent=2) + "\n")


def _data_size(file: Path) -> int:
    opened = Unmapped(file)
    return sum(last - first for first, last in (opened.get_slice(k).entry["data_offsets"] for k in opened.keys()))  # noqa: SIM118


def _in_precision(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a configuration, and those within it, with another precision where one is stated."""
    name = str(dtype).removeprefix("torch.")
    return {
        key: name
        if key in ("dtype", "torch_dtype")
        else _in_precision(value, dtype)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


_NAMES = {DTYPES[name]: name for name in FLOATS}
