"""Readings and alerts as rich tables for the terminal."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from weightwatch.config import GuardSettings, Rule
from weightwatch.reading.grouping import Layer, split
from weightwatch.reading.reading import Reading, Score
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.report.console import above_bars, console
from weightwatch.rules.alert import Alert
from weightwatch.vectors.printable import printable

_BARS = " ▁▂▃▄▅▆▇█"
_SPARE = ("layers", "z", "dose", "cosine", "reach cos.", "peak")
"""Columns of the summary that a narrow terminal goes without, in this order. The alerts always stay."""


def number(value: float | None) -> str:
    """Format a figure of a reading with a sign and three decimals; a smaller one with two digits; None is a dash.

    Example:
        >>> number(0.25), number(-0.00012), number(3e-7), number(0.0)
        ('+0.250', '-0.00012', '+3.0e-07', '+0.000')
    """
    if value is None:
        return "–"
    return f"{value:+.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:+#.2g}"


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


class ClosingTable:
    """The table that closes a run: where each direction ended, its peak, and its alerts.

    It leaves out columns that the terminal has no room for, but never the alerts.

    Args:
        outcome: The end of the run.
    """

    def __init__(self, outcome: Outcome) -> None:
        last = outcome.last
        self._title = f"weightwatch: step {last.step}, update norm {last.update_norm:.3g}"
        self._rows = [_row(name, outcome) for name in last.directions]
        if all(found.z is None for found in last.directions.values()):
            for row in self._rows:
                del row["z"]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table with as many columns as fit."""
        table = self._table(())
        for count in range(1, len(_SPARE) + 1):
            if Measurement.get(console, options.update(max_width=10_000), table).maximum <= options.max_width:
                break
            table = self._table(_SPARE[:count])
        yield table

    def _table(self, dropped: Sequence[str]) -> Table:
        table = Table(title=self._title, title_justify="left")
        headings = [heading for heading in self._rows[0] if heading not in dropped]
        for heading in headings:
            left = heading in ("direction", "layers", "alert")
            table.add_column(
                heading, justify="left" if left else "right", no_wrap=not left or heading == "layers", overflow="fold"
            )
        for row in self._rows:
            table.add_row(*(row[heading] for heading in headings))
        return table


def _row(name: str, outcome: Outcome) -> dict[str, Text | str]:
    """Return the cells of a direction, by the heading of their column."""
    found, (peak, step) = outcome.last.directions[name], outcome.peaks[name]
    return {
        "direction": Text(printable(name)),
        "cosine": number(found.cosine),
        "reach cos.": number(found.reach_cosine),
        "peak": f"{number(peak)} at {step}",
        "dose": number(found.dose),
        "z": _z(found.z),
        "layers": profile(found.layers),
        "alert": _alerts([alert for alert in outcome.alerts if alert.direction == name and alert.state == "firing"]),
    }


def _alerts(fired: Sequence[Alert]) -> Text:
    first: dict[str, int] = {}
    for alert in fired:
        first.setdefault(alert.alert, alert.step)
    if not first:
        return Text("none", style="green")
    return Text(printable(", ".join(f"{rule} at {step}" for rule, step in first.items())), style="bold red")


def _z(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def opening(run: Run, folder: Path) -> str:
    """Return one line on what is watched, how often, by which rules, and where the record is."""
    named = [direction.name for direction in run.directions if direction.card.kind != "control"]
    controls = [direction.name for direction in run.directions if direction.card.kind == "control"]
    watched = ", ".join(named or controls) + (f" (controls: {', '.join(controls)})" if named and controls else "")
    every = "every step" if run.config.every == 1 else f"every {run.config.every} steps"
    return printable(
        f"weightwatch: watching {watched} {every}; {_guard(run)}{applied(run.config.rules)}; record: {folder}"
    )


def applied(rules: Sequence[Rule]) -> str:
    """Return the names of rules, and for default ones their condition.

    Example:
        >>> applied([Rule(alert="drift", direction="evil", above=0.2)])
        'rules: drift'
        >>> applied([Rule(alert="evil-drift", direction="evil", above=0.1, default=True)])
        'rules: evil-drift (default, not calibrated: reach_cosine above 0.1)'
        >>> applied([])
        'no rules, so no alerts'
    """
    named = [
        rule.alert + (f" (default, not calibrated: {rule.metric} above {rule.threshold:g})" if rule.default else "")
        for rule in rules
    ]
    return printable(f"rules: {', '.join(named)}" if named else "no rules, so no alerts")


def undecided(rule: Rule, judged: int, count: int) -> str:
    """Say why a rule could not fire in a scan, or at some checkpoints.

    Args:
        rule: The rule.
        judged: Number of checkpoints that it can judge.
        count: Number of all checkpoints.

    Example:
        >>> undecided(Rule(alert="drift", direction="evil", above=0.2, **{"for": 2}), 1, 1)
        'rule drift could not fire: it takes 2 checkpoints in a row (`for: 2`), of 1 here'
    """
    told = []
    if rule.baseline is not None and judged < count:
        told.append(f"judged {judged} of {count} checkpoints: its baseline begins at step {rule.baseline.steps[0]}")
    if rule.for_ > judged:
        told.append(f"could not fire: it takes {rule.for_} checkpoints in a row (`for: {rule.for_}`), of {judged} here")
    return printable(f"rule {rule.alert} {'; it '.join(told)}")


def _guard(run: Run) -> str:
    """Return what is kept out, how, and which witness there is; nothing without a guard."""
    guard = run.config.guard
    if guard is None:
        return ""
    others = [d.name for d in run.directions if d.card.kind != "control" and d.name != guard.witnessed]
    when = "on" if guard.when == "always" else "ready, switched on by an alert"
    witness = f"witness: {guard.witnessed}" if guard.witnessed is not None else "no witness"
    return f"guard: {when} (keeps {', '.join(guard.directions or others)} out, mode: {guard.mode}, {witness}); "


def closing(outcome: Outcome, guard: GuardSettings) -> str:
    """Return one line on what a guard has done, and what its witness reads."""
    taken = ", ".join(f"a dose of {number(dose).lstrip('+')} of {name}" for name, dose in outcome.taken.items() if dose)
    sides = {"outputs": "outputs that its directions write to", "inputs": "inputs that its directions read from"}
    kept = " and the ".join(side for name, side in sides.items() if guard.sides in (name, "both"))
    others = {
        "gradient": "took its directions out of the gradients",
        "preventative": "added its directions while training",
        "subspace": f"kept the {kept} as they were",
    }
    did = others.get(guard.mode, f"took back {taken or 'nothing'}")
    if guard.when == "alert" and not any("guard" in alert.actions for alert in outcome.alerts):
        did = "was not switched on"
    reads = ""
    if guard.witnessed is not None:
        value = outcome.last[guard.witnessed].reach_cosine
        side = "above" if value > guard.witness_above else "not above"
        reads = f"; its witness {guard.witnessed} reads {number(value)} (reach cos.), {side} {guard.witness_above:g}"
    return printable(f"weightwatch: the guard (mode: {guard.mode}) {did}{reads}")


class Summary(Reporter):
    """Says at the start of a run what is watched, and prints a table at its end.

    Args:
        folder: The folder of the record.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard: GuardSettings | None = None

    def begin(self, run: Run) -> None:
        """Print one line."""
        self._guard = run.config.guard
        with above_bars():
            console(soft_wrap=True).print(opening(run, self._folder))

    def end(self, outcome: Outcome) -> None:
        """Print the table, and what a guard has done."""
        with above_bars():
            console().print(ClosingTable(outcome))
            if self._guard is not None:
                console(soft_wrap=True).print(closing(outcome, self._guard))


def scanned(readings: Sequence[Reading]) -> Table:
    """Return the table of a scan: one row for each checkpoint and direction, in the order of the readings."""
    table = Table(title="weightwatch scan", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("step", "direction", "cosine", "reach cos.", "dose", "z", "reach", "‖τ‖"):
        named = heading == "direction"
        table.add_column(heading, justify="left" if named else "right", no_wrap=not named, overflow="fold")
    for reading in readings:
        step = str(reading.step)
        for name, found in reading.directions.items():
            table.add_row(
                step,
                Text(printable(name)),
                number(found.cosine),
                number(found.reach_cosine),
                number(found.dose),
                _z(found.z),
                f"{found.reach:.3f}",
                f"{reading.update_norm:.3g}",
            )
            step = ""
    return table
