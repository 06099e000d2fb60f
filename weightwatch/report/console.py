"""The terminal, on which names from elsewhere are text and nothing more."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


def console(*, stderr: bool = False, **settings: Any) -> Console:
    """Return a console that reads no markup, emoji codes or numbers to highlight into what it prints.

    Args:
        stderr: Whether to print to standard error.
        settings: Further settings of ``rich.console.Console``.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, **settings)


@contextmanager
def above_bars() -> Iterator[None]:
    """Clear tqdm's progress bars in a ``with`` block, so that what is printed there begins a line of its own."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        yield


def bars() -> int:
    """Return how many progress bars of tqdm are shown."""
    from tqdm import tqdm

    return sum(not bar.disable for bar in tqdm._instances)
