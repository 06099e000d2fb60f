"""Progress of long commands: bars on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from weightwatch.cli.pace import Pace, duration
from weightwatch.report.quiet import aside, quiet
from weightwatch.vectors.printable import printable

if TYPE_CHECKING:
    from weightwatch.vectors.generation import Progress

_SHARE = 0.1  # of a stage's steps between two plain lines
_SECONDS = 5.0  # between two plain lines of a stage


@contextmanager
def stages(console: Console, pace: Pace | None = None) -> Iterator["Progress"]:
    """Show how far each stage is: as a bar on a terminal, elsewhere as a line at each tenth at most.

    A stage starts with a call with the steps that are done already. The times that are shown come from the steps since.

    The libraries' own bars are off meanwhile, and whatever the libraries print goes to standard error: standard output
    is for the result.

    Args:
        console: Where the progress is shown.
        pace: Measures the stages. Default: a new one.

    Yields:
        A function to call with the name of a stage, the number of its steps done, and their total.
    """
    show = _bars(console) if console.is_terminal else nullcontext(_Lines(console))
    with quiet(), aside(), show as shown:
        pace = pace or Pace()

        def advance(stage: str, done: int, total: int) -> None:
            pace.tell(stage, done, total)
            shown(stage, done, total, pace)

        yield advance


class _Bars:
    """A bar for each stage."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, pace: Pace) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(printable(stage), completed=done, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


@contextmanager
def _bars(console: Console) -> Iterator[_Bars]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        yield _Bars(bars)


class _Lines:
    """A line when a stage's first step is done, at each tenth after some seconds, and at its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, tuple[int, float]] = {}

    def __call__(self, stage: str, done: int, total: int, pace: Pace) -> None:
        spent, left = pace.spent(stage), pace.left(stage)
        if done >= total:
            self._print(f"{stage}: {done}/{total} in {duration(spent)}")
            return
        if left is None:
            return
        steps, seconds = self._last.get(stage, (None, None))
        if steps is None or (done - steps >= _SHARE * total and spent - (seconds or 0.0) >= _SECONDS):
            self._last[stage] = (done, spent)
            if left >= _SECONDS:
                self._print(f"{stage}: {done}/{total}, about {duration(left)} left")

    def _print(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def transfers(console: Console) -> Bars:
    """Return bars for bytes that are read or written, with the rate; they disappear at the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Bars(*columns, console=console, transient=True)
