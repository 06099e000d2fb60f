"""Ways to damage a file: each yields a name of the damage and the bytes of the damaged file."""

import json
import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

Damage: TypeAlias = tuple[str, bytes]

WRONG_VALUES: dict[str, Any] = {
    "null": None,
    "a text": "\x1b[31mnonsense[/]",
    "a list": [[]],
    "a mapping": {"x": {}},
    "a negative number": -7,
    "a huge number": 10**400,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "true": True,
    "half": 0.5,
}
"""Values that a key of a JSON document should not have, or mostly not."""


def of_bytes(whole: bytes) -> Iterator[Damage]:
    """Damage any file, whatever is in it."""
    yield "is empty", b""
    yield "ends after its first byte", whole[:1]
    yield "ends in the middle", whole[: len(whole) // 2]
    yield "lacks its last byte", whole[:-1]
    yield "is zeros", bytes(len(whole))
    yield "is not UTF-8", b"\xff\xfe\x80" + whole
    yield "has a page of zeros at its end", whole[:-64] + bytes(4096)


def of_json(whole: bytes, keys: tuple[str, ...] | None = None) -> Iterator[Damage]:
    """Damage a JSON document: as a file, and each of its keys.

    Args:
        whole: The document, a mapping.
        keys: The keys that are damaged. Default: all.
    """
    yield from of_bytes(whole)
    for name, text in {
        "is a list": "[]",
        "is a number": "7",
        "is null": "null",
        "is a text": '"text"',
        "is nested too deep": "[" * 100_000,
        "nests mappings too deep": '{"a":' * 100_000,
        "has a number of a million digits": '{"r": ' + "9" * 1_000_000 + "}",
    }.items():
        yield name, text.encode()
    document = json.loads(whole)
    for key in keys if keys is not None else tuple(document):
        yield f"lacks {key}", json.dumps({k: v for k, v in document.items() if k != key}).encode()
        for name, value in WRONG_VALUES.items():
            yield f"has {name} for {key}", json.dumps({**document, key: value}).encode()


def of_safetensors(whole: bytes) -> Iterator[Damage]:
    """Damage a safetensors file: as a file, its header, and the entry of one of its matrices."""
    yield from of_bytes(whole)
    size = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def file(text: str | bytes) -> bytes:
        raw = text.encode() if isinstance(text, str) else text
        return struct.pack("<Q", len(raw)) + raw + data

    for name, stated in {
        "0": 0,
        "a byte too few": size - 1,
        "too much": 2**62,
        "more than the file": size * 1000,
    }.items():
        yield f"states a header of {name}", struct.pack("<Q", stated) + whole[8:]
    for name, text in {
        "a list": "[]",
        "a number": "3",
        "nested too deep": "[" * 100_000,
        "empty": "{}",
        "not JSON": "{'a': 1}",
        "not UTF-8": b'{"\xff": 1}',
    }.items():
        yield f"has a header that is {name}", file(text)
    first, second = sorted(key for key, entry in header.items() if key != "__metadata__" and len(entry["shape"]) == 2)[
        :2
    ]
    entry, other = header[first], header[second]
    start, end = entry["data_offsets"]
    changes: dict[str, dict[str, Any]] = {
        "the offsets of another tensor": {"data_offsets": other["data_offsets"]},
        "its offsets the wrong way round": {"data_offsets": [end, start]},
        "offsets behind the file": {"data_offsets": [start + len(data), end + len(data)]},
        "negative offsets": {"data_offsets": [start - end, 0]},
        "offsets that overlap": {"data_offsets": [start + 4, end + 4]},
        "offsets of floats": {"data_offsets": [float(start), float(end)]},
        "offsets of texts": {"data_offsets": [str(start), str(end)]},
        "one offset": {"data_offsets": [start]},
        "three offsets": {"data_offsets": [start, end, end]},
        "no offsets": {"data_offsets": None},
        "offsets of a byte less": {"data_offsets": [start, end - 1]},
        "a type of twice the size": {"dtype": "F64"},
        "a type of half the size": {"dtype": "BF16"},
        "an unknown type": {"dtype": "F24"},
        "a number as type": {"dtype": 32},
        "a list as type": {"dtype": ["F32"]},
        "a shape of one row more": {"shape": [entry["shape"][0] + 1, entry["shape"][1]]},
        "a shape of floats": {"shape": [float(n) for n in entry["shape"]]},
        "a shape of texts": {"shape": [str(n) for n in entry["shape"]]},
        "a shape with a negative size": {"shape": [-entry["shape"][0], -entry["shape"][1]]},
        "a shape with an enormous size": {"shape": [2**40, 2**40]},
        "a shape of true and false": {"shape": [True, False]},
        "no shape": {"shape": None},
        "a number as shape": {"shape": 32},
        "a shape with a zero": {"shape": [0, entry["shape"][1]]},
    }
    for name, change in changes.items():
        yield f"gives {first} {name}", file(json.dumps({**header, first: {**entry, **change}}))
    for key in entry:
        yield (
            f"does not give {first} its {key}",
            file(json.dumps({**header, first: {k: v for k, v in entry.items() if k != key}})),
        )
    yield f"has a number for {first}", file(json.dumps({**header, first: 3}))
    yield "has numbers as metadata", file(json.dumps({**header, "__metadata__": {"format": 3}}))
    yield "has a list as metadata", file(json.dumps({**header, "__metadata__": ["pt"]}))
    text = json.dumps(header)
    yield f"has {first} twice", file(f'{{"{first}": {json.dumps(other)}, {text[1:]}')


def of_lines(whole: bytes, keys: tuple[str, ...] | None = None) -> Iterator[Damage]:
    """Damage a file of JSON lines: its second line is damaged as a document, or the lines as a sequence."""
    first, second, *rest = whole.splitlines()
    for name, damaged in of_json(second, keys):
        yield f"has a line that {name}", b"\n".join([first, damaged, *rest]) + b"\n"
    yield "has a line twice", b"\n".join([first, second, second, *rest]) + b"\n"
    yield "has its lines the wrong way round", b"\n".join([second, first, *rest]) + b"\n"
    yield "lacks a line", b"\n".join([first, *rest]) + b"\n"
    yield "has empty lines", b"\n\n".join([first, second, *rest]) + b"\n"
    yield "has the line ends of Windows", b"\r\n".join([first, second, *rest]) + b"\r\n"
