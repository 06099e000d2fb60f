"""A copy of θ₀ on disk. Each process writes its shards to a safetensors file of its own.

The metadata of a file has the position of each shard in its tensor, so a run can be resumed on another number of
processes.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor, common, within
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import whole_file
from weightwatch.vectors.weights.reader import Box, Opener, Unmapped

_Natural = Annotated[int, Field(ge=0)]


class _Place(BaseModel):
    """The position of a shard in its tensor."""

    name: str
    shape: tuple[_Natural, ...]
    box: tuple[tuple[_Natural, _Natural], ...]

    @property
    def slices(self) -> Box:
        return tuple(slice(first, last) for first, last in self.box)

    def fits(self, shard: Iterable[int], shape: tuple[int, ...]) -> bool:
        """Whether a shard of a shape fills this place, in a tensor of a shape."""
        inside = len(self.box) == len(shape) and all(b[1] <= size for b, size in zip(self.box, shape, strict=True))
        return self.shape == shape and inside and [last - first for first, last in self.box] == list(shard)


_Places: TypeAdapter[dict[str, _Place]] = TypeAdapter(dict[str, _Place])


class Snapshot:
    """Full tensors of θ₀ from the files of a snapshot, which stay open.

    Args:
        folder: The folder that was passed to ``write``.
        opener: Opens a safetensors file.

    Attributes:
        path: The folder.

    Raises:
        WeightWatchError: The folder has no snapshot, or a file is damaged.
    """

    def __init__(self, folder: Path, opener: Opener = Unmapped) -> None:
        self.path = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[tuple[Box, Any, str]]] = {}
        files = _files(folder)
        counts = {path.stem.rpartition("-of-")[2].lstrip("0") for path in files}
        if len(counts) > 1:
            raise WeightWatchError(
                f"{folder} has copies of θ₀ from runs on {' and '.join(sorted(counts))} processes. Remove those of the "
                "older run, or pass reference=, the base checkpoint."
            )
        for path in files:
            try:
                file = opener(path)
                places = _Places.validate_json(file.metadata().get("places", "null"))
                for key, place in places.items():
                    if not place.fits(file.get_slice(key).get_shape(), self._shapes.get(place.name, place.shape)):
                        raise ValueError(f"the place of {key} does not fit its shape")
                    self._shapes[place.name] = place.shape
                    self._pieces.setdefault(place.name, []).append((place.slices, file, key))
            except (OSError, ValueError, KeyError) as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
                raise WeightWatchError(
                    f"{path} can't be read ({reason}). Pass reference=, the base checkpoint."
                ) from error
        if not self._pieces:
            raise WeightWatchError(
                f"The copy of θ₀ that this run wrote to {folder} is gone. Pass reference=, the base checkpoint."
            )

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._shapes[name]

    def read(self, name: str, box: Box) -> Tensor:
        """Read a box of a tensor: one slice for each dimension.

        Raises:
            WeightWatchError: A file with some of its values is missing.
        """
        found: Tensor | None = None
        missing = _size(box)
        for place, file, key in self._pieces[name]:
            here = common(box, place)
            if any(part.stop <= part.start for part in here):
                continue
            values: Tensor = file.get_slice(key)[within(here, place)] if box else file.get_tensor(key)
            if here == box:
                return values
            if found is None:
                found = torch.empty([part.stop - part.start for part in box], dtype=values.dtype, device="cpu")
            found[within(here, box)] = values
            missing -= values.numel()
        if found is None or missing:
            raise WeightWatchError(
                f"A shard of θ₀ of {name} is missing in {self.path}: the run was started on machines without a "
                "shared disk. Copy the reference-*.safetensors of all machines here, or pass reference=."
            )
        return found


def write(folder: Path, tensors: Mapping[str, LocalTensor], ranks: Ranks) -> None:
    """Write this process's shards of θ₀ to a file, atomically.

    Args:
        folder: Folder of the snapshot.
        tensors: Local shards of the tensors, by name.
        ranks: The processes that write the snapshot.

    Raises:
        WeightWatchError: The disk does not have twice the space that is needed.
    """
    pieces: dict[str, Tensor] = {}
    places: dict[str, Any] = {}
    for name, local in tensors.items():
        for number, piece in enumerate(ranks.share(local).pieces):
            key = f"{name}::{number}"
            pieces[key] = piece.values.to(local.dtype).contiguous().cpu()
            places[key] = {"name": name, "shape": local.shape, "box": [(s.start, s.stop) for s in piece.box]}
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files(folder):  # of an earlier run, on a disk that the main process can't access
        if not path.stem.endswith(f"-of-{ranks.count:05d}"):
            path.unlink(missing_ok=True)
    size, free = sum(t.numel() * t.element_size() for t in pieces.values()), shutil.disk_usage(folder).free
    if free < 2 * size:
        raise WeightWatchError(
            f"θ₀ of the trained tensors is in no checkpoint here, and the disk of {folder} has no room for a copy "
            f"({free / 1e9:.1f} GB free, twice {size / 1e9:.1f} GB needed). Pass reference=, the base checkpoint."
        )
    path = folder / f"reference-{ranks.rank:05d}-of-{ranks.count:05d}.safetensors"
    with whole_file(path) as draft:
        save_file(pieces, draft, metadata={"places": json.dumps(places)})


def remove(folder: Path) -> None:
    """Remove the snapshot of an earlier run."""
    for path in _files(folder):
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("reference-*-of-[0-9]*.safetensors"))


def _size(box: Box) -> int:
    size = 1
    for part in box:
        size *= part.stop - part.start
    return size
