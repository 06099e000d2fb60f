"""The header of a safetensors file: which tensors it has, of which type and shape, and where their bytes are.

A header is foreign data, and its entries can contradict each other. Each is checked against the others and against the
size of the file before a byte of a tensor is read: the tensors fill the file without gaps and overlaps, as the format
demands.

Format: https://huggingface.co/docs/safetensors
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError

BITS = {
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **dict.fromkeys(("BOOL", "I8", "U8"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
}
"""Bits of one element, by the name of the element type."""

_LONGEST = 100_000_000  # bytes of a header, as safetensors itself allows
_LARGEST = 1 << 62  # bits of a tensor: what torch can count
_NOTES = "__metadata__"

_Natural = Annotated[StrictInt, Field(ge=0)]


class Entry(BaseModel):
    """One tensor of a file.

    Attributes:
        dtype: Element type, as safetensors names it.
        shape: Its shape.
        data_offsets: Its first byte and the byte after its last, counted from the end of the header.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    shape: Annotated[tuple[_Natural, ...], Field(max_length=32)]
    data_offsets: tuple[_Natural, _Natural]

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.data_offsets[1] - self.data_offsets[0]


_Entries: TypeAdapter[dict[str, Entry]] = TypeAdapter(dict[str, Entry])
_Notes: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


@dataclass(frozen=True)
class Header:
    """A validated header.

    Attributes:
        entries: The tensors by name, in the order of their bytes.
        notes: The metadata.
        first: Position of the first byte of data in the file.
    """

    entries: Mapping[str, Entry]
    notes: Mapping[str, str]
    first: int

    @property
    def file_size(self) -> int:
        """Size in bytes of the complete file."""
        return self.first + max((entry.data_offsets[1] for entry in self.entries.values()), default=0)

    @classmethod
    def of(cls, text: bytes) -> "Header":
        """Read and validate a header.

        Args:
            text: Its JSON text.

        Raises:
            ValueError: It is damaged, or its entries contradict each other; the message is a clause.
        """
        try:
            table = json.loads(text.decode(), object_pairs_hook=_once)
        except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError("its header is damaged: it is no JSON object of tensors") from error
        if not isinstance(table, dict):
            raise ValueError("its header is damaged: it is no JSON object of tensors")
        try:
            notes = _Notes.validate_python(table.pop(_NOTES, None) or {})
            entries = _Entries.validate_python(table)
        except ValidationError as error:
            first = error.errors()[0]
            where = " of ".join(str(part) for part in reversed(first["loc"]))
            raise ValueError(f"its header is damaged: {first['msg'].lower()} at {where or 'its metadata'}") from error
        ordered = dict(sorted(entries.items(), key=lambda item: item[1].data_offsets))
        end = 0
        for name, entry in ordered.items():
            _require_fit(name, entry)
            if entry.data_offsets[0] != end:
                relation = "overlap those of another tensor" if entry.data_offsets[0] < end else "leave a gap"
                raise ValueError(f"its header is damaged: the offsets of {name} {relation}")
            end = entry.data_offsets[1]
        return cls(ordered, notes, 8 + len(text))


def header_length(start: bytes) -> int:
    """Return the length in bytes of a file's header, from the first eight bytes of the file.

    Raises:
        ValueError: They are not those of a safetensors file.
    """
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= _LONGEST:
        raise ValueError("it has no safetensors header")
    return length


def written(tensors: Iterable[tuple[str, str, tuple[int, ...]]], notes: Mapping[str, str]) -> bytes:
    """Return the bytes in front of the data of a new file.

    Args:
        tensors: Name, element type and shape of each tensor, in the order of their bytes.
        notes: The metadata.
    """
    table: dict[str, Any] = {_NOTES: dict(notes)} if notes else {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + _bits(dtype, shape) // 8
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a JSON text. Of two entries of one name, JSON parsers keep one in silence."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"its header is damaged: it has {key} twice")
        found[key] = value
    return found


def _require_fit(name: str, entry: Entry) -> None:
    if entry.dtype not in BITS:
        raise ValueError(f"the element type {entry.dtype} of {name} is unknown")
    if _bits(entry.dtype, tuple(size or 1 for size in entry.shape)) >= _LARGEST:
        raise ValueError(f"its header is damaged: the shape of {name} is too large")
    if 8 * entry.size != _bits(entry.dtype, entry.shape):
        raise ValueError(
            f"its header is damaged: {name} has {entry.size} bytes, which do not fit its shape {list(entry.shape)} "
            f"and type {entry.dtype}"
        )


def _bits(dtype: str, shape: tuple[int, ...]) -> int:
    return BITS[dtype] * prod(shape)
