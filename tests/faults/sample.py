"""A sample of many inputs: some of them in every run of the tests, all of them with ``-m campaign`` beside it."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest


def sample(cases: Iterable[tuple[str, tuple[Any, ...]]], one_in: int) -> Iterator[Any]:
    """Yield parameters of a test, each with its name; all but one in so many are marked ``campaign``."""
    for number, (name, values) in enumerate(cases):
        readable = name.encode("unicode_escape").decode()
        yield pytest.param(*values, id=readable, marks=[pytest.mark.campaign] if number % one_in else [])
