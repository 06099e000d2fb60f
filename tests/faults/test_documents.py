"""Damaged settings and recipes: read as YAML 1.2 has them, or refused with the file's name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.limits import within
from tests.faults.sample import sample
from weightwatch import Config
from weightwatch.vectors import Recipe, WeightWatchError

SETTINGS = """\
directions: [evil]
every: 50
rules:
  - alert: drift
    direction: evil
    metric: reach_cosine
    above: 0.05
    for: 2
    labels: {team: safety}
"""
RECIPE = (Path(__file__).parents[2] / "vectors" / "recipes" / "style.yaml").read_text(encoding="utf-8")
VALUES = {
    "null": "null",
    "a tilde": "~",
    "a date": "2026-01-01",
    "a time": "12:30:00",
    "a text": "'x'",
    "an empty text": "''",
    "a list": "[[1]]",
    "a mapping": "{a: {b: c}}",
    "a mapping with a list as key": "{[1, 2]: 3}",
    "yes": "yes",
    "an octal number": "0o17",
    "a number with a zero before it": "017",
    "a number in base 60": "1:30",
    "a huge number": "9" * 5000,
    "a huge exponent": "1e999999",
    "NaN": ".nan",
    "infinity": ".inf",
    "a negative number": "-3",
    "a merge key": "{<<: {a: 1}}",
    "an unknown alias": "*nowhere",
    "itself": "&self [*self]",
    "a tag of Python": "!!python/object/apply:os.system ['true']",
    "a tag of its own": "!mine 3",
    "a binary": "!!binary aGVsbG8=",
    "a set": "!!set {a, b}",
    "a text of control characters": '"\\e[31m\\0\\x07"',
}
WHOLE: dict[str, bytes] = {
    "is empty": b"",
    "is a list": b"- 1\n- 2\n",
    "is a number": b"3\n",
    "is a text": b"hello\n",
    "is two documents": b"a: 1\n---\nb: 2\n",
    "is not UTF-8": b"\xff\xfe\x80a: 1\n",
    "is nested too deep": b"a: " + b"[" * 20_000,
    "nests mappings too deep": b"{a: " * 20_000,
    "has a tab": b"a:\n\t- 1\n",
    "has a control character": b"a: \x00\n",
    "is an unfinished text": b'a: "x\n',
    "has aliases of aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(12)),
    "has thousands of keys": b"".join(b"k%d: 1\n" % i for i in range(4_000)),
}


def damaged(text: str) -> Iterator[tuple[str, bytes]]:
    """Yield damaged forms of a YAML document: as a whole, and each of the keys that begin or nearly begin a line."""
    yield from WHOLE.items()
    for number, line in enumerate(text.splitlines()):
        key, colon, value = line.partition(": ")
        if not colon or key.count(" ") > 4 or "#" in key:
            continue
        rows = text.splitlines()
        for name, other in VALUES.items():
            yield (
                f"line {number + 1} has {name}",
                "\n".join([*rows[:number], f"{key}: {other}", *rows[number + 1 :]]).encode(),
            )
        twice = [*rows[: number + 1], f"{key.replace('-', ' ')}: {value}", *rows[number + 1 :]]
        yield f"line {number + 1} stands twice", "\n".join(twice).encode()


@contextmanager
def refused_by_name(file: Path) -> Iterator[None]:
    """Allow an error that names the file, and does not print all of it."""
    try:
        yield
    except WeightWatchError as error:
        if str(file) not in str(error) or len(str(error)) > 1000:
            raise


def faults(text: str) -> Iterator[tuple[str, tuple[bytes]]]:
    for what, content in damaged(text):
        yield what, (content,)


@pytest.mark.parametrize("content", sample(faults(SETTINGS), 2))
def test_damaged_settings_are_refused_by_name_or_valid(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "weightwatch.yaml"
    file.write_bytes(content)
    with within(), refused_by_name(file):
        found = Config.load(file)
        assert Config.load(found.model_dump(by_alias=True, exclude_none=True)) == found


@pytest.mark.parametrize("content", sample(faults(RECIPE), 60))
def test_damaged_recipes_are_refused_by_name_or_valid(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with within(), refused_by_name(file):
        found = Recipe.load(file)
        assert found.questions.building
