"""The header of a safetensors file: what safetensors writes is read, and what contradicts itself is refused."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from weightwatch.vectors.weights.header import BITS, Header, header_length, written

ENTRIES: dict[str, dict[str, Any]] = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}


def text(**changes: Any) -> bytes:
    """Return a header in which fields of the tensor ``a`` are changed."""
    return json.dumps({**ENTRIES, "a": {**ENTRIES["a"], **changes}}).encode()


def test_what_safetensors_writes_is_read() -> None:
    file = save({"w": torch.ones(3, 5), "n": torch.ones(0, 2), "i": torch.ones(7, dtype=torch.uint8)}, {"key": "value"})
    length = header_length(file[:8])
    header = Header.of(file[8 : 8 + length])
    assert {name: (entry.dtype, entry.shape) for name, entry in header.entries.items()} == {
        "w": ("F32", (3, 5)),
        "n": ("F32", (0, 2)),
        "i": ("U8", (7,)),
    }
    assert header.notes == {"key": "value"}
    assert header.file_size == len(file)


@pytest.mark.parametrize("dtype", BITS)
def test_a_written_header_reads_back(dtype: str) -> None:
    start = written([("w", dtype, (8, 4)), ("scalar", "F32", ())], {"key": "value"})
    header = Header.of(start[8:])
    assert header_length(start[:8]) == len(start) - 8
    assert [entry.size for entry in header.entries.values()] == [4 * BITS[dtype], 4]
    assert header.first == len(start)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "F64"}, "a has 16 bytes, which do not fit its shape"),
        ({"dtype": "F33"}, "element type F33 of a is unknown"),
        ({"dtype": 4}, "at dtype of a"),
        ({"shape": [2, 3]}, "do not fit its shape"),
        ({"shape": [2.0, 2.0]}, "at 0 of shape of a"),
        ({"shape": [-2, -2]}, "at 0 of shape of a"),
        ({"shape": [True, 4]}, "at 0 of shape of a"),
        ({"shape": [1] * 100}, "at shape of a"),
        ({"shape": [0, 1 << 62]}, "the shape of a is too large"),
        ({"shape": None}, "at shape of a"),
        ({"data_offsets": [8, 24]}, "the offsets of a leave a gap"),
        ({"data_offsets": [16, 0]}, "do not fit its shape"),
        ({"data_offsets": [16, 32]}, "leave a gap"),
        ({"data_offsets": [0.0, 16.0]}, "at 0 of data_offsets of a"),
        ({"data_offsets": [0, 16, 20]}, "at data_offsets of a"),
        ({"data_offsets": [-16, 0]}, "at 0 of data_offsets of a"),
        ({"extra": 1}, "at extra of a"),
    ],
)
def test_an_entry_that_contradicts_itself_or_another_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Header.of(text(**changes))


def test_two_tensors_on_the_same_bytes_are_refused() -> None:
    both = {"a": ENTRIES["a"], "b": ENTRIES["a"]}
    with pytest.raises(ValueError, match="overlap those of another tensor"):
        Header.of(json.dumps(both).encode())


def test_a_name_that_stands_twice_is_refused() -> None:
    entry = json.dumps(ENTRIES["a"])
    with pytest.raises(ValueError, match="it has a twice"):
        Header.of(f'{{"a": {entry}, "a": {entry}}}'.encode())


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b"3", b"{", b"\xff\xfe", b'{"a": 3}', b'{"a": []}'])
def test_what_is_no_table_of_tensors_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="its header is damaged"):
        Header.of(content)


def test_metadata_are_texts() -> None:
    with pytest.raises(ValueError, match="its header is damaged"):
        Header.of(json.dumps({**ENTRIES, "__metadata__": {"format": 3}}).encode())


@pytest.mark.parametrize("start", [b"", b"\0" * 8, b"\1\0\0\0", (1 << 40).to_bytes(8, "little")])
def test_a_length_that_no_header_has_is_refused(start: bytes) -> None:
    with pytest.raises(ValueError, match="no safetensors header"):
        header_length(start)
