"""One safetensors file, read without mapping it into memory.

Another process can truncate a file while it is mapped, and the next access to a page then ends this process with
SIGBUS. A mapped page also counts as memory of the process until the kernel takes it back. ``safetensors.safe_open``
always maps. Here each part is read into new memory, and the file must be the one that was opened: if it was written to
since, reading is an error, so that values of two versions are never mixed.
"""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.header import Entry, Header, header_length

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The element types of which tensors can be read, as safetensors names them."""
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Element types, as safetensors names them, of weights that are not quantised."""

_RUN = 1 << 24  # bytes that are copied at a time
_FREED = (1 << 25) - (1 << 16)  # bytes: the largest block that glibc can be made to keep

Box: TypeAlias = tuple[slice, ...]
"""A part of a tensor: one slice for each dimension."""

Opener: TypeAlias = Callable[[Path], Any]
"""Opens a safetensors file: ``Unmapped``, or a partial of it that counts what is read."""


class Unmapped:
    """A file that is read without a map, with the methods of ``safetensors.safe_open`` that are used here.

    Several threads may read at once.

    Args:
        path: The file.
        on_read: Called with the number of bytes after each read.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a safetensors file, or its size is not what its header states; the message is a clause.
    """

    def __init__(self, path: Path, on_read: Callable[[int], None] | None = None) -> None:
        file = path.open("rb", buffering=0)
        weakref.finalize(self, file.close)
        # Until a larger block was freed once, glibc returns every freed block to the system, and page faults cost time.
        torch.empty(_FREED, dtype=torch.uint8, device="cpu")
        self.path = path
        self._number = file.fileno()
        self._on_read = on_read
        self._header = _header(self._number)
        self._version = _version(self._number)
        size, wanted = self._version[0], self._header.file_size
        if size != wanted:
            raise ValueError(f"it has {size} bytes where its header states {wanted}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Unmapped, (self.path, self._on_read)  # a copy opens the file itself

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._header.entries)

    def metadata(self) -> Mapping[str, str]:
        """Return the metadata of the header."""
        return self._header.notes

    def get_slice(self, name: str) -> "Part":
        """Return a tensor by its name, to read parts of it."""
        return Part(self, self._header.entries[name])

    def get_tensor(self, name: str) -> Tensor:
        """Read a whole tensor."""
        part = self.get_slice(name)
        return self.read(part.entry, 0, prod(part.get_shape())).reshape(part.get_shape())

    def raw(self, name: str) -> Iterator[bytearray]:
        """Yield the bytes of a tensor as they are on disk, some megabytes at a time."""
        at, end = self._header.entries[name].data_offsets
        while at < end:
            buffer = bytearray(min(_RUN, end - at))
            self._fill(memoryview(buffer), at)
            at += len(buffer)
            yield buffer

    def read(self, entry: Entry, first: int, last: int) -> Tensor:
        """Read a range of elements of a flattened tensor into new memory.

        Raises:
            WeightWatchError: The file was written to since it was opened, or its elements can't be read.
        """
        if entry.dtype not in DTYPES:
            raise WeightWatchError(f"{self.path} has tensors of the type {entry.dtype}, which torch can't read.")
        values = torch.empty(last - first, dtype=DTYPES[entry.dtype], device="cpu")
        if last > first:
            view = memoryview(values.view(torch.uint8).numpy().data)
            self._fill(view, entry.data_offsets[0] + first * values.element_size())
        return values

    def _fill(self, view: memoryview, at: int) -> None:
        """Read bytes of the data into memory, and make sure that they are of the file that was opened."""
        done, first = 0, self._header.first + at
        while done < len(view) and (got := os.preadv(self._number, [view[done:]], first + done)):
            done += got
        if done < len(view) or _version(self._number) != self._version:
            raise WeightWatchError(
                f"{self.path} was written to while it was in use, so its old values are gone. Restore the file and "
                "start again, or wait until it is written."
            )
        if self._on_read is not None:
            self._on_read(len(view))


class Part:
    """One tensor of a file.

    Args:
        file: The file.
        entry: The tensor's entry in the file's header.
    """

    def __init__(self, file: Unmapped, entry: Entry) -> None:
        self.entry = entry
        self._file = file

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return list(self.entry.shape)

    def get_dtype(self) -> str:
        """Return safetensors' name of the element type."""
        return self.entry.dtype

    def __getitem__(self, box: Box) -> Tensor:
        """Read a box: the shortest contiguous range of elements that contains it, and nothing else."""
        shape = self.entry.shape
        if not shape:
            return self._file.read(self.entry, 0, 1).reshape(())
        places = [part.indices(size) for part, size in zip(box, shape, strict=True)]
        sizes = [max(0, stop - start) for start, stop, _ in places]
        if 0 in sizes:
            return self._file.read(self.entry, 0, 0).reshape(sizes)
        steps = [prod(shape[i + 1 :]) for i in range(len(shape))]
        first = sum(start * step for (start, _, _), step in zip(places, steps, strict=True))
        last = sum((stop - 1) * step for (_, stop, _), step in zip(places, steps, strict=True))
        return self._file.read(self.entry, first, last + 1).as_strided(sizes, steps)


def tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file into memory, by their names in the file.

    Raises:
        OSError: There is no such file.
        ValueError: It is not a complete safetensors file.
    """
    file = Unmapped(path)
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


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
        return _header(file.fileno()).file_size


def _header(number: int) -> Header:
    """Return the header of an open file."""
    length = header_length(os.pread(number, 8, 0))
    if os.fstat(number).st_size < 8 + length:
        raise ValueError("its header is cut short")
    return Header.of(os.pread(number, length, 8))


def _version(number: int) -> tuple[int, int]:
    """Return what changes when an open file is written to."""
    about = os.fstat(number)
    return about.st_size, about.st_mtime_ns
