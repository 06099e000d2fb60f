"""Where a run stands, while it goes on: a line below the trainer's progress bar, or plain lines where there is none."""

import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.text import Text

from weightwatch.reading.reading import Reading
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.report.console import above_bars, bars, console
from weightwatch.report.terminal import number
from weightwatch.rules.alert import Alert
from weightwatch.vectors.printable import printable

_SHOWN = 12
"""Checks of a sparkline."""
_NEWS = 0.01
"""Change of a reach cosine from which on a plain line is printed."""
_HEIGHTS = "▁▂▃▄▅▆▇█"


class Live(Reporter):
    """Shows after each check the reach cosine of each behaviour direction, and which rules fire.

    On a terminal this is one line below the trainer's tqdm bar. It is a tqdm bar itself, so that the two, and what is
    printed meanwhile, don't overwrite each other. Elsewhere (a log file, a notebook, no progress bar) it is a plain
    line, only after checks with news: a reach cosine that differs by 0.01 from that of the last line, or another set of
    rules that fire.
    """

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}
        self._told: tuple[list[float], list[str]] = ([], [])
        self._line: Any = None

    def begin(self, run: Run) -> None:
        """Take the names of the behaviour directions; without one, those of the controls."""
        behaviours = [direction.name for direction in run.directions if direction.card.kind != "control"]
        names = behaviours or [direction.name for direction in run.directions]
        self._values = {name: deque(maxlen=_SHOWN) for name in names}
        self._told = ([0.0] * len(names), [])

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Show a check. At step 0 nothing has moved yet."""
        if not reading.step:
            return
        for name, values in self._values.items():
            values.append(reading[name].reach_cosine)
        fires = [rule for rule, now in firing.items() if now]
        if self._line is None and sys.stderr.isatty() and bars():
            from tqdm import tqdm

            self._line = tqdm(bar_format="{desc}", leave=False, dynamic_ncols=True)
        if self._line is not None:
            self._line.set_description_str(_styled(self._told_live(reading, fires)))
        else:
            self._print(reading, fires)

    def end(self, outcome: Outcome) -> None:
        """Remove the line."""
        if self._line is not None:
            if bars() == 1:  # the trainer's bar is closed, which has left the cursor on this line
                self._line.pos = 0
            self._line.close()
            self._line = None

    def _told_live(self, reading: Reading, fires: Sequence[str]) -> Text:
        parts = [Text(f"step {reading.step}")]
        if fires:
            parts.append(Text(printable(f"ALERT {', '.join(fires)}"), style="bold red"))
        for name, values in self._values.items():
            z = reading[name].z
            beside = "" if z is None else f" z {z:+.1f}"
            parts.append(Text(printable(f"{name} {sparkline(values)} {number(values[-1])}{beside}")))
        return Text("  ").join(parts)

    def _print(self, reading: Reading, fires: list[str]) -> None:
        values = [shown[-1] for shown in self._values.values()]
        before, fired = self._told
        if fires == fired and all(abs(now - then) < _NEWS for now, then in zip(values, before, strict=True)):
            return
        self._told = values, fires
        figures = ", ".join(f"{name} {number(value)}" for name, value in zip(self._values, values, strict=True))
        firing = f"; firing: {', '.join(fires)}" if fires else ""
        with above_bars():
            console(soft_wrap=True).print(printable(f"weightwatch: step {reading.step}: reach cos. {figures}{firing}"))


def sparkline(values: Collection[float]) -> str:
    """Draw values as bars between the least and the greatest of them, or zero if that is beyond.

    Example:
        >>> sparkline([0.0, 0.02, 0.05, 0.1]), sparkline([0.0, 0.0])
        ('▁▂▅█', '▁▁')
    """
    low, high = min(0.0, *values), max(0.0, *values)
    scale = (len(_HEIGHTS) - 1) / (high - low) if high > low else 0.0
    return "".join(_HEIGHTS[round((value - low) * scale)] for value in values)


def _styled(text: Text) -> str:
    """Return text with the terminal's codes for its styles, cut to the width of the terminal."""
    screen = console(stderr=True)
    text.truncate(screen.width - 1, overflow="ellipsis")
    with screen.capture() as captured:
        screen.print(text, end="", no_wrap=True)
    return captured.get()
