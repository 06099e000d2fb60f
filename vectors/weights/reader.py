"""A safetensors file that is read instead of mapped into memory, so that what was read doesn't stay resident.

A mapped page counts as memory of the process until the kernel takes it back: reading a checkpoint through a map costs
as much memory as the checkpoint is large. ``safetensors.safe_open`` always maps.
"""

import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
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
_RUN = 1 << 24  # bytes that are copied at a time
_LONGEST = 100_000_000  # bytes of a header, as safetensors itself allows

Box = tuple[slice, ...]


class Unmapped:
    """One file: of the interface of ``safetensors.safe_open``, what ``Checkpoint`` and ``Snapshot`` use.

    Reads may run in several threads at once.

    Args:
        path: The file.
        on_read: Called with the number of bytes after each read.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a safetensors file, or is shorter than its header says.
    """

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        file = path.open("rb", buffering=0)
        weakref.finalize(self, file.close)
        self._number = file.fileno()
        self._file = file
        self._on_read = on_read
        self._entries, self._first, size = _header(self._number)
        if os.fstat(self._number).st_size < size:
            raise ValueError(f"it has {os.fstat(self._number).st_size} bytes where its header says {size}")
        self._notes: Mapping[str, str] = self._entries.pop("__metadata__", {})

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._entries)

    def metadata(self) -> Mapping[str, str]:
        """Return what was noted in the header."""
        return self._notes

    def get_slice(self, name: str) -> "Part":
        """Return a tensor of which boxes can be read."""
        return Part(self, self._entries[name])

    def get_tensor(self, name: str) -> Tensor:
        """Read a whole tensor."""
        part = self.get_slice(name)
        return self.read(part.entry, 0, prod(part.get_shape())).reshape(part.get_shape())

    def raw(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor as they are stored, some megabytes at a time."""
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
        """Read some elements of a flattened tensor into memory of its own."""
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
        entry: What its header says of the tensor.
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
        """Read a box: the shortest run of elements that holds it, and nothing else."""
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
    """Cut a tensor into boxes of at most so many elements, each of which lies in one run on disk.

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


def stored_size(path: Path) -> int:
    """Return the length that a safetensors file says of itself that it will have when it is whole.

    Raises:
        OSError: There is no such file.
        ValueError: Its header is not whole yet, or no header.
    """
    with path.open("rb", buffering=0) as file:
        return _header(file.fileno())[2]


def _header(number: int) -> tuple[dict[str, Any], int, int]:
    """Return the entries of an open file's header, where its data begin, and where they end."""
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
