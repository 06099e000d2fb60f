from collections.abc import Mapping

import pytest

from weightwatch.vectors.weights.lazy import Lazy, Selection


class Counted(Lazy[int]):
    """The length of each name, and how often one was asked for."""

    reads = 0

    def __getitem__(self, name: str) -> int:
        if name not in self:
            raise KeyError(name)
        self.reads += 1
        return len(name)


def test_names_are_known_without_reading_a_value() -> None:
    found = Counted(["b", "aa", "b"])
    assert (list(found), len(found), "aa" in found, "c" in found) == (["b", "aa"], 2, True, False)
    assert found.reads == 0
    assert dict(found) == {"b": 1, "aa": 2}
    assert found.reads == 2


def test_a_selection_reads_only_what_is_asked_for() -> None:
    every = Counted(["a", "bb", "ccc"])
    some: Mapping[str, int] = Selection(every, ["ccc", "a"])
    assert list(some) == ["ccc", "a"]
    assert some["ccc"] == 3
    assert every.reads == 1
    with pytest.raises(KeyError):
        some["bb"]
