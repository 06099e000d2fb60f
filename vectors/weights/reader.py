"""One safetensors file: mapped into memory, or read without a map so that memory stays flat.

A mapped page counts as memory of the process until the kernel takes it back: reading a checkpoint through a map costs
as much memory as the checkpoint is large. ``safetensors.safe_open`` always maps.
"""

import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Element types, as safetensors names them, of weights that are not quantised."""

_RUN = 1 << 24  # bytes that are copied at a time
_LONGEST = 100_000_000  # bytes of a header, as safetensors itself allows

Box: TypeAlias = tuple[slice, ...]
"""A part of a tensor: one slice for each dimension."""

Opener: TypeAlias = Callable[[Path], Any]
"""Opens a safetensors file: ``Mapped``, or ``Unmapped`` for flat memory."""


class Mapped:
    """A file that is mapped into memory: reading again costs nothing, and the pages stay resident.

    Tensors are views of the map. Each is made once, since making a view takes longer than measuring a small tensor.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self.path = file
        self._file = safe_open(file, framework="pt", device="cpu")
        self._views: dict[str, Tensor] = {}
        self.keys, self.get_slice, self.metadata = self._file.keys, self._file.get_slice, self._file.metadata

    def __reduce__(self) -> tuple[Any, ...]:
        return Mapped, (self.path,)  # a copy opens the file itself

    def get_tensor(self, name: str) -> Tensor:
        """Return a whole tensor."""
        if name not in self._views:
            self._views[name] = self._file.get_tensor(name)
        return self._views[name]


class Unmapped:
    """A file that is read without a map, with the methods of ``safetensors.safe_open`` that are used here.

    Several threads may read at once.

    Args:
        path: The file.
        on_read: Called with the number of bytes after each read.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a safetensors file, or is shorter than its header states.
    """

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        file = path.open("rb", buffering=0)
        weakref.finalize(self, file.close)
        self.path = path
        self._number = file.fileno()
        self._file = file
        self._on_read = on_read
        self._entries, self._first, size = _header(self._number)
        if os.fstat(self._number).st_size < size:
            raise ValueError(f"it has {os.fstat(self._number).st_size} bytes where its header states {size}")
        self._notes: Mapping[str, str] = self._entries.pop("__metadata__", {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Unmapped, (self.path, self._on_read)  # a copy opens the file itself

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._entries)

    def metadata(self) -> Mapping[str, str]:
        """Return the metadata of the header."""
        return self._notes

    def get_slice(self, name: str) -> "Part":
        """Return a tensor by its name, to read parts of it."""
        return Part(self, self._entries[name])

    def get_tensor(self, name: str) -> Tensor:
        """Read a whole tensor."""
        part = self.get_slice(name)
        return self.read(part.entry, 0, prod(part.get_shape())).reshape(part.get_shape())

    def raw(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor as they are on disk, some megabytes at a time."""
        at, end = self._entries[name]["data_offsets"]
        while at < end:
            got = os.pread(self._number, min(_RUN, end - at), self._first + at)
            if not got:
                raise OSError(f"{self._file.name} ended while it was read")
            at += len(got)
            if self._on_read is not None:
                self._on_read(len(got))
            yield got

    def read(self, entry: Mapping[str, Any], first: int, last: int) -> Tensor:
        """Read a range of elements of a flattened tensor into new memory."""
        kind = DTYPES[entry["dtype"]]
        values = torch.empty(last - first, dtype=kind)
        view = memoryview(values.view(torch.uint8).numpy().data) if last > first else memoryview(b"")
        at = self._first + entry["data_offsets"][0] + first * values.element_size()
        done = 0
        while done < len(view):
            got = os.preadv(self._number, [view[done:]], at + done)
            if not got:
                raise OSError(f"{self._file.name} ended while it was read")
            done += got
        if self._on_read is not None:
            self._on_read(len(view))
        return values


class Part:
    """One tensor of a file.

    Args:
        file: The file.
        entry: The tensor's entry in the file's header.
    """

    def __init__(self, file: Unmapped, entry: Mapping[str, Any]) -> None:
        self.entry = entry
        self._file = file

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.entry["shape"])

    def get_dtype(self) -> str:
        """Return safetensors' name of the element type."""
        return str(self.entry["dtype"])

    def __getitem__(self, box: Box) -> Tensor:
        """Read a box: the shortest contiguous range of elements that contains it, and nothing else."""
        shape = self.get_shape()
        places = [part.indices(size) for part, size in zip(box, shape, strict=True)]
        sizes = [max(0, stop - start) for start, stop, _ in places]
        if 0 in sizes:
            return self._file.read(self.entry, 0, 0).reshape(sizes)
        steps = [prod(shape[i + 1 :]) for i in range(len(shape))]
        first = sum(start * step for (start, _, _), step in zip(places, steps, strict=True))
        last = sum((stop - 1) * step for (_, stop, _), step in zip(places, steps, strict=True))
        return self._file.read(self.entry, first, last + 1).as_strided(sizes, steps)


def boxes(shape: tuple[int, ...], most: int) -> Iterator[Box]:
    """Split a tensor into boxes of at most ``most`` elements, each contiguous on disk.

    Example:
        >>> [tuple((s.start, s.stop) for s in box) for box in boxes((3, 4), 8)]
        [((0, 2), (0, 4)), ((2, 3), (0, 4))]
    """
    if not shape or 0 in shape:
        yield tuple(slice(0, size) for size in shape)
        return
    row = prod(shape[1:])
    if row <= most:
        step = max(1, most // row)
        rest = tuple(slice(0, size) for size in shape[1:])
        for first in range(0, shape[0], step):
            yield (slice(first, min(first + step, shape[0])), *rest)
        return
    for first in range(shape[0]):
        for box in boxes(shape[1:], most):
            yield (slice(first, first + 1), *box)


def whole_size(path: Path) -> int:
    """Return the size in bytes that a safetensors file has when it is complete, according to its header.

    Raises:
        OSError: There is no such file.
        ValueError: Its header is incomplete or damaged.
    """
    with path.open("rb", buffering=0) as file:
        return _header(file.fileno())[2]


def _header(number: int) -> tuple[dict[str, Any], int, int]:
    """Return the entries of an open file's header, the first byte of its data, and the size of the complete file."""
    length = int.from_bytes(os.pread(number, 8, 0), "little")
    if not 2 <= length <= _LONGEST:
        raise ValueError("it has no safetensors header")
    text = os.pread(number, length, 8)
    if len(text) < length:
        raise ValueError("its header is cut short")
    entries = json.loads(text)
    try:
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return entries, 8 + length, 8 + length + max(ends, default=0)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ValueError("its header is damaged") from error
