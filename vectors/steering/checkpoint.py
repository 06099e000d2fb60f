"""Adding a multiple of a direction to a checkpoint on disk: a new checkpoint, written a block at a time."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightwatch.vectors.card import CARD
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.precision import exact
from weightwatch.vectors.steering.in_memory import AT_ONCE, require_finite, summed
from weightwatch.vectors.weights.adapter_config import is_adapter
from weightwatch.vectors.weights.atomic import whole_folder
from weightwatch.vectors.weights.checkpoint import INDEX, SINGLE, Checkpoint
from weightwatch.vectors.weights.header import written
from weightwatch.vectors.weights.names import canonical, indexed
from weightwatch.vectors.weights.reader import DTYPES, FLOATS, Box, Unmapped, boxes
from weightwatch.vectors.weights.tied import copies, embeddings

Change: TypeAlias = Callable[[Box], Tensor]
"""Returns the part of a change that lies in a box of a tensor in the file."""

# Not copied: the weights in other formats, and the state of a training run.
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
    """Write θ + k·w as a new checkpoint with the same shards, configuration and tokenizer.

    Each tensor is read, added to and written block by block, so that memory does not grow with the checkpoint. Load a
    dense direction with ``opener=Unmapped`` to leave it on disk, too. Sums are computed in fp32 and rounded once.
    ``out`` is created only after everything is written.

    Args:
        source: A folder with ``model.safetensors`` or its sharded form. If its files have other tensor names than the
            model, pass ``weights.conversion.under_names(Checkpoint(folder), direction.deltas)``.
        direction: w.
        k: Its coefficient.
        out: A new folder.
        dtype: Precision of all weights in the new checkpoint. Default: that of each weight in the old one.
        progress: Called with the number of bytes of the old checkpoint that were processed since the last call.

    Returns:
        The new folder.

    Raises:
        WeightWatchError: The source is not such a checkpoint; it lacks a tensor of the direction, or has it in another
            shape or quantised; a sum does not fit the precision; ``out`` already exists. Nothing is written then.
    """
    old = source if isinstance(source, Checkpoint) else _opened(Path(source))
    if not old.path.is_dir():
        raise WeightWatchError(f"{old.path} is a single file. Pass the folder with its config.json.")
    require_finite(k, direction)
    if dtype is not None and dtype not in _NAMES:
        raise WeightWatchError(f"A checkpoint can't be written in {dtype}: pass float32, bfloat16, float16 or None.")
    changes = _changes(old, direction)
    with whole_folder(out) as draft:
        for file in old.files:  # a shard keeps its place, which the index states
            target = draft / file.relative_to(old.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _rewrite(file, target, changes, k, dtype, progress)
        _copy_rest(old, draft, dtype)
    return Path(out)


def _opened(folder: Path) -> Checkpoint:
    if is_adapter(folder) and not (folder / CARD).is_file():
        raise WeightWatchError(f"{folder} is an adapter: use steer_adapter, or merge it into its base.")
    if (folder / CARD).is_file():
        raise WeightWatchError(f"{folder} is a direction, not a checkpoint. Pass the model that is to be steered.")
    return Checkpoint(folder, Unmapped)


def matched(checkpoint: Checkpoint, direction: Direction) -> Iterator[tuple[str, str]]:
    """Yield the tensors of a checkpoint that a direction changes, each with its name in the direction.

    A tied head that the checkpoint does not save stands for the embedding. One that it saves changes like the
    embedding.

    Raises:
        WeightWatchError: The checkpoint lacks a tensor of the direction, or the direction changes tied weights
            differently.
    """
    outside = any(not indexed(name) for name in direction.deltas)
    original = copies(checkpoint) if outside else {}
    tied: dict[str, list[str]] = {}
    for copy, name in original.items():
        tied.setdefault(name, [name]).append(copy)
    found: dict[str, str] = {}
    for name in direction.deltas:
        target = name if name in checkpoint else _embedding(checkpoint, direction, name)
        for one in tied.get(original.get(target, target), [target]):
            taken = found.setdefault(one, name)
            if taken != name and not direction.changes_alike(taken, name):
                raise WeightWatchError(
                    f"{name} and {taken} are one tied weight of {checkpoint.path}, but direction {direction.name!r} "
                    "changes them differently. Use a direction of a tied model."
                )
    yield from found.items()


def _embedding(checkpoint: Checkpoint, direction: Direction, name: str) -> str:
    """Return the embedding to which an unsaved head is tied: the only matrix of its shape outside the layers."""
    alike = [] if indexed(name) else embeddings(checkpoint, direction.shape(name))
    if len(alike) != 1:
        raise WeightWatchError(
            f"{checkpoint.path} lacks {name}, which direction {direction.name!r} changes. Use a direction that was "
            "built from this model. If transformers saves the model under other tensor names, use `weightwatch steer` "
            "or weights.conversion.under_names."
        )
    return alike[0]


def _changes(old: Checkpoint, direction: Direction) -> dict[str, Change]:
    """Return the change of each tensor in the files, by its name there."""
    changes: dict[str, Change] = {}
    for target, name in matched(old, direction):
        shape, kind = old.shape(target), old.dtype(target)
        if kind not in FLOATS:
            raise WeightWatchError(
                f"{target} has the element type {kind} in {old.path} (quantised?), so direction {direction.name!r} "
                "can't be added to it. Use the checkpoint that it was quantised from."
            )
        direction.require_shape(name, shape, str(old.path))
        for part, place in old.places(target):
            changes[part] = _shifted(direction, name, place)
    return changes


def _shifted(direction: Direction, name: str, place: Box) -> Change:
    """Return the change of a tensor in the files that is the given box of the model's tensor."""

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
    progress: Callable[[int], None] | None,
) -> None:
    """Write one file again with changes: the same tensors in the same order."""
    file = Unmapped(source, progress)
    kinds = {key: _kind(file, key, dtype) for key in file.keys()}  # noqa: SIM118
    shapes = ((key, kind, tuple(file.get_slice(key).get_shape())) for key, kind in kinds.items())
    with target.open("wb") as new:
        new.write(written(shapes, file.metadata() or {"format": "pt"}))
        for key, kind in kinds.items():
            change = changes.get(canonical(key))
            if change is None and kind == file.get_slice(key).get_dtype():
                new.writelines(file.raw(key))
                continue
            for part in _parts(file, key, change, k, kind):
                new.write(memoryview(part.contiguous().reshape(-1).view(torch.uint8).numpy().data))


def _kind(file: Unmapped, key: str, dtype: torch.dtype | None) -> str:
    kind = file.get_slice(key).get_dtype()
    return _NAMES[dtype] if dtype is not None and kind in FLOATS else kind


def _parts(file: Unmapped, key: str, change: Change | None, k: float, kind: str) -> Iterator[Tensor]:
    """Yield the new values of a tensor in the order of the file."""
    part = file.get_slice(key)
    for box in boxes(tuple(part.get_shape()), AT_ONCE):
        values = part[box] if box else file.get_tensor(key)
        new = values.to(torch.promote_types(values.dtype, torch.float32))
        with exact():
            new = (new if change is None else summed(new, change(box), k)).to(DTYPES[kind])
        if not bool((new.isfinite() | ~values.isfinite()).all()):
            raise WeightWatchError(
                f"The new values of {canonical(key)} exceed the range of {kind}. Pass dtype=torch.bfloat16 or "
                "torch.float32, or take a smaller coefficient."
            )
        yield new


def _copy_rest(old: Checkpoint, draft: Path, dtype: torch.dtype | None) -> None:
    """Copy the other files, and update the precision that the configuration and the index state."""
    for file in old.path.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in _STATE and file.name[0] != ".":
            shutil.copyfile(file, draft / file.name)
    for name in _FOLDERS:
        if (old.path / name).is_dir():
            shutil.copytree(old.path / name, draft / name)
    if old.files[0].name != SINGLE:
        index = json.loads((old.path / INDEX).read_text())
        if dtype is not None and "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] = sum(_data_size(draft / file.relative_to(old.path)) for file in old.files)
        (draft / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    if dtype is not None and (draft / "config.json").is_file():
        config = json.loads((draft / "config.json").read_text())
        (draft / "config.json").write_text(json.dumps(_in_precision(config, dtype), indent=2) + "\n")


def _data_size(file: Path) -> int:
    opened = Unmapped(file)
    return sum(opened.get_slice(key).entry.size for key in opened.keys())  # noqa: SIM118


def _in_precision(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a configuration, and those nested in it, with another precision wherever one is stated."""
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
