"""Mappings by parameter name whose tensors are read only on access."""

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class Lazy(Mapping[str, Value]):
    """A mapping that knows its names and reads a value on access: looking for a name reads nothing.

    Subclasses define ``__getitem__``.

    Args:
        names: The names, in order.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = dict.fromkeys(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


class Selection(Lazy[Value]):
    """Some entries of a mapping.

    Args:
        every: The mapping.
        names: The names to keep, which it has.

    Example:
        >>> dict(Selection({"a": 1, "b": 2, "c": 3}, ["c", "a"]))
        {'c': 3, 'a': 1}
    """

    def __init__(self, every: Mapping[str, Value], names: Collection[str]) -> None:
        super().__init__(names)
        self._every = every

    def __getitem__(self, name: str) -> Value:
        if name not in self:
            raise KeyError(name)
        return self._every[name]
