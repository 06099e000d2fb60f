"""YAML is read exactly, or refused with its line."""

import math
from typing import Any

import pytest
import yaml

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.yaml_text import MAX_SIZE, dump, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e+1", -25.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", 15),
        ("-0", 0),
        ("+7", 7),
        ("~", None),
        ("yes", True),
        ("1:30", "1:30"),  # ninety in YAML 1.1
        ("010", "010"),  # eight in YAML 1.1
        ("1.2.3", "1.2.3"),
        ("e3", "e3"),
        ("2026-01-31", "2026-01-31"),
        ("2026-01-31T10:00:00Z", "2026-01-31T10:00:00Z"),
        ("'1e-3'", "1e-3"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("[]", []),
        ("{a: &x [1, 2], b: *x}", {"a": [1, 2], "b": [1, 2]}),
        ("base: &b {a: 1, c: 2}\nover:\n  <<: *b\n  a: 3", {"base": {"a": 1, "c": 2}, "over": {"a": 3, "c": 2}}),
        ("", None),
        ("# nothing\n", None),
    ],
)
def test_a_value_is_what_yaml_1_2_says(text: str, value: Any) -> None:
    found, _ = load(text, "file")
    assert found == value
    assert type(found) is type(value)


def test_special_numbers_are_numbers() -> None:
    assert load("[.inf, -.INF]", "file")[0] == [math.inf, -math.inf]
    assert math.isnan(load(".nan", "file")[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "file, line 3: the key a is there twice, first in line 1. Remove one."),
        ("x:\n- {a: 1,\n   a: 1}", "file, line 3: the key a is there twice, first in line 2."),
        ("1: a\n1.0: b", "file, line 2: the key 1.0 is there twice"),
        ("a: !!python/object/apply:os.system [ls]", "file, line 1: the tag tag:yaml.org,2002:python/object/apply:os"),
        ("a:\n  !custom {b: 1}", "file, line 2: the tag !custom is not allowed"),
        ("!!binary aGk=", "file, line 1: the tag tag:yaml.org,2002:binary is not allowed"),
        ("!!set {a}", "the tag tag:yaml.org,2002:set is not allowed"),
        ("!!timestamp 2026-01-31", "the tag tag:yaml.org,2002:timestamp is not allowed"),
        ("a: 1\nb: !!int x", "file, line 2: it is not of its type, int."),
        ("!!float x", "file, line 1: it is not of its type, float."),
        ("!!bool x", "it is not of its type, bool."),
        ("!!int [1]", "file, line 1: expected a scalar node"),
        ("a: 1\n? [x]\n: 1", "file, line 2: found unhashable key."),
        ("a: *none", "file, line 1 is not YAML: found undefined alias 'none'."),
        ("a: 1\n---\nb: 2", "is not YAML: but found another document."),
        ("a: [", "is not YAML: "),
        ("a: \x00", "file is not YAML: special characters are not allowed."),
        ("a: &a [*a]", "file is too large: its aliases expand"),
        ("[" * 20_000, "file is not YAML that can be read: it is nested too deeply."),
        ("a: " + "x" * MAX_SIZE, "file is too large: it has more than 10,000,000 characters."),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(WeightWatchError) as caught:
        load(text, "file")
    assert message in str(caught.value)


def nested(levels: int, line: str) -> str:
    """Aliases of aliases, nine at each level."""
    lines = [line.format(name="a0", inside="x, " * 9)]
    lines += [line.format(name=f"a{i}", inside=f"*a{i - 1}, " * 9) for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("line", ["{name}: &{name} [{inside}]", "{name}: &{name} {{b: [{inside}]}}"])
def test_aliases_that_expand_without_end_are_refused(line: str) -> None:
    assert len(load(nested(4, line), "file")[0]) == 4
    with pytest.raises(WeightWatchError, match=r"its aliases expand to more than 10,000,000 characters"):
        load(nested(9, line), "file")


def test_merges_of_merges_are_refused_as_other_aliases_are() -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9)]
    with pytest.raises(WeightWatchError, match="its aliases expand"):
        load("\n".join(lines), "file")


@pytest.mark.parametrize("value", ["1e-3", "0o7", "2026-01-31", "yes", "010", "1:30", "é\x1b[2J\nb", 1e-7, 1e300, 10])
def test_what_is_written_is_read_again_here_and_by_other_readers(value: Any) -> None:
    text = dump({"value": value})
    assert load(text, "file")[0] == yaml.safe_load(text) == {"value": value}
