"""Readings and alerts as rich tables for the terminal."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightwatch.reading.grouping import Layer, split
from weightwatch.reading.reading import Reading, Score
from weightwatch.report.base import Outcome, Reporter

_BARS = " ▁▂▃▄▅▆▇█"


def number(value: float | None) -> str:
    """Format a figure of a reading with a sign and three decimals; None is a dash."""
    return "–" if value is None else f"{value:+.3f}"


def profile(layers: Mapping[Layer, Score]) -> str:
    """Draw the share of each layer in the cosine as a bar, first layer left; a negative share is blank.

    A vertical line separates the main stack from the others, such as an encoder.

    Example:
        >>> profile({layer: Score(0.3, 0.3, 0.1, 0.9, share) for layer, share in enumerate([0.8, 0.4, -0.2])})
        '█▄ '
    """
    most = max((score.share for score in layers.values()), default=0.0)
    full = (len(_BARS) - 1) / most if most > 0 else 0.0
    stacks = groupby(layers.items(), key=lambda item: split(item[0])[0])
    return "│".join("".join(_BARS[round(max(0.0, s.share) * full)] for _, s in stack) for _, stack in stacks)


def summary(outcome: Outcome) -> Table:
    """Return the table that closes a run: where each direction ended, its peak, and its alerts."""
    last = outcome.last
    table = Table(title=f"weightwatch: step {last.step}, update norm {last.update_norm:.3g}", title_justify="left")
    controlled = any(found.z is not None for found in last.directions.values())
    headings = ("direction", "cosine", "reach cos.", "peak", "dose", *(["z"] if controlled else []), "layers", "alert")
    for heading in headings:
        left = heading in ("direction", "layers", "alert")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "alert")
    for name, found in last.directions.items():
        peak, step = outcome.peaks[name]
        fired = next((alert for alert in outcome.alerts if alert.direction == name and alert.state == "firing"), None)
        table.add_row(
            name,
            number(found.cosine),
            number(found.reach_cosine),
            f"{number(peak)} at {step}",
            number(found.dose),
            *(["–" if found.z is None else f"{found.z:+.1f}"] if controlled else []),
            profile(found.layers),
            Text(f"{fired.alert} at {fired.step}", style="bold red") if fired else Text("none", style="green"),
        )
    return table


class Summary(Reporter):
    """Prints a table at the end of a run."""

    def end(self, outcome: Outcome) -> None:
        """Print the table."""
        Console().print(summary(outcome))


def scanned(readings: Sequence[Reading]) -> Table:
    """Return the table of a scan: one row for each checkpoint and direction, in the order of the readings."""
    table = Table(title="weightwatch scan", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("step", "direction", "cosine", "reach cos.", "dose", "z", "reach", "‖τ‖"):
        table.add_column(heading, justify="left" if heading == "direction" else "right", no_wrap=True)
    for reading in readings:
        step = str(reading.step)
        for name, found in reading.directions.items():
            table.add_row(
                step,
                name,
                number(found.cosine),
                number(found.reach_cosine),
                number(found.dose),
                "–" if found.z is None else f"{found.z:+.1f}",
                f"{found.reach:.3f}",
                f"{reading.update_norm:.3g}",
            )
            step = ""
    return table
