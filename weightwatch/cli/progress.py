"""Progress bars of long commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from weightwatch.report.quiet import aside, quiet
from weightwatch.vectors.printable import printable

if TYPE_CHECKING:
    from weightwatch.vectors.generation import Progress


@contextmanager
def stages(console: Console) -> Iterator["Progress"]:
    """Show a bar for each stage.

    The libraries' own bars are off meanwhile, and whatever the libraries print goes to standard error: standard output
    is for the result.

    Args:
        console: Where the bars are shown.

    Yields:
        A function to call with the name of a stage, the number of its steps done, and their total.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with quiet(), aside(), Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(printable(stage))
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def transfers(console: Console) -> Bars:
    """Return bars for bytes that are read or written, with the rate; they disappear at the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Bars(*columns, console=console, transient=True)
