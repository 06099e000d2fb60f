"""θ₀ written down by the processes that hold it: each its own parts, in a safetensors file of its own.

A file's metadata says of each of its tensors where in the whole it lies, so that a run that is resumed on another
number of processes finds its parts again.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import whole_file
from weightwatch.vectors.weights.reader import Box, Mapped, Opener


class Snapshot:
    """Full tensors of θ₀, read from the files of a snapshot; they stay open.

    Args:
        folder: The folder that ``write`` was given.
        opener: How the files are opened.

    Raises:
        WeightWatchError: There is none, or a file is damaged.
    """

    def __init__(self, folder: Path, opener: Opener = Mapped) -> None:
        self._folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[tuple[Box, Any, str]]] = {}
        for path in _files(folder):
            try:
                file = opener(path)
                places: Mapping[str, Any] = json.loads(file.metadata()["places"])
            except Exception as error:
                raise WeightWatchError(f"{path} can't be read ({error}). Pass reference= to go on.") from error
            for key, place in places.items():
                box = tuple(slice(first, last) for first, last in place["box"])
                self._shapes[place["name"]] = tuple(place["shape"])
                self._pieces.setdefault(place["name"], []).append((box, file, key))
        if not self._pieces:
            raise WeightWatchError(f"θ₀ of this run was written to {folder}, and is gone. Pass reference= to go on.")

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str, box: Box) -> Tensor:
        """Read a part of a tensor: one slice for each dimension.

        Raises:
            WeightWatchError: A file that holds some of it is missing.
        """
        found: Tensor | None = None
        missing = _size(box)
        for place, file, key in self._pieces[name]:
            common = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, place, strict=True))
            if any(part.stop <= part.start for part in common):
                continue
            values: Tensor = file.get_slice(key)[_within(common, place)] if box else file.get_tensor(key)
            if common == box:
                return values
            if found is None:
                found = torch.empty([part.stop - part.start for part in box], dtype=values.dtype)
            found[_within(common, box)] = values
            missing -= values.numel()
        if found is None or missing:
            raise WeightWatchError(
                f"A part of θ₀ of {name} is missing in {self._folder}: the run was begun on other machines, without a "
                "shared disk. Copy the reference-*.safetensors of all of them here, or pass reference=."
            )
        return found


def write(folder: Path, tensors: Mapping[str, LocalTensor], ranks: Ranks) -> None:
    """Write what this process answers for of some tensors, all or nothing, if the disk has room for it twice.

    Raises:
        WeightWatchError: It has not.
    """
    stored: dict[str, Tensor] = {}
    places: dict[str, Any] = {}
    for name, local in tensors.items():
        for number, piece in enumerate(ranks.share(local).pieces):
            key = f"{name}::{number}"
            stored[key] = piece.values.to(local.dtype).contiguous().cpu()
            places[key] = {"name": name, "shape": local.shape, "box": [(s.start, s.stop) for s in piece.box]}
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files(folder):  # of an earlier run, on a disk that the main process doesn't see
        if not path.stem.endswith(f"-of-{ranks.count:05d}"):
            path.unlink(missing_ok=True)
    size, free = sum(t.numel() * t.element_size() for t in stored.values()), shutil.disk_usage(folder).free
    if free < 2 * size:
        raise WeightWatchError(
            f"θ₀ of what is trained is in no checkpoint here, and a copy of it ({size / 1e9:.1f} GB) does not fit on "
            f"the disk of {folder} ({free / 1e9:.1f} GB free). Pass reference=, the base checkpoint's folder."
        )
    path = folder / f"reference-{ranks.rank:05d}-of-{ranks.count:05d}.safetensors"
    with whole_file(path) as draft:
        save_file(stored, draft, metadata={"places": json.dumps(places)})


def remove(folder: Path) -> None:
    """Remove the snapshot of an earlier run."""
    for path in _files(folder):
        path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("reference-*-of-*.safetensors"))


def _within(inner: Box, outer: Box) -> Box:
    """Return a box in the coordinates of one that contains it."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))


def _size(box: Box) -> int:
    size = 1
    for part in box:
        size *= part.stop - part.start
    return size
