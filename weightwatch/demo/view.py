"""The demonstration on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from weightwatch.demo.run import BAD, GUARD, Run
from weightwatch.report.terminal import number

LEGEND = Text(
    "task: correct answers in the tasks of the fine-tune. evil: harmful answers in held-out domains.\n"
    "Both come from the model's answers at every check; cosine, reach cos. and dose come from its weights.\n",
    style="dim",
)
"""The meaning of the columns."""

ALONE = ("step", "loss", "task", "cosine", "reach cos.", "dose", "evil", "weightwatch")
COMPARED = ("step", "task", "reach cos.", "witness", "dose", "evil", "weightwatch")
"""Columns of a run, and of one that is compared with a guarded run; there is no room for all in 80 columns."""

ROW_EVERY = 20
"""Steps between the rows of the table; the alert and the first bad check have rows of their own."""


@contextmanager
def live(console: Console, run: Run) -> Iterator[Callable[[Run], None]]:
    """Show the table of a run while it trains; yields a function to call after each check."""
    with Live(table(run), console=console, auto_refresh=False) as display:
        yield lambda latest: display.update(table(latest), refresh=True)
    console.print()


def table(run: Run) -> RenderableType:
    """Return the checks of a run as a table, beside the behaviour of the model; see ``LEGEND``."""
    title = f"{run.name} fine-tune" + (f", {run.poison:.0%} of its data harmful in one domain" if run.poison else "")
    compared = any(point.witness is not None for point in run.points)
    headings = COMPARED if compared else ALONE
    grid = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in headings:
        grid.add_column(heading, justify="right" if heading != "weightwatch" else "left", no_wrap=True)
    fired = {alert.step: alert for alert in run.alerts if alert.state == "firing"}
    for point in run.points:
        if point.step % ROW_EVERY and point.step not in (*fired, run.first_bad_step):
            continue
        bad = point.behaviour.evil_rate > BAD
        alert = fired.get(point.step)
        cells: dict[str, str | Text] = {
            "step": str(point.step),
            "loss": f"{point.loss:.2f}",
            "task": f"{point.behaviour.task_accuracy:.0%}",
            "cosine": number(point.cosine),
            "reach cos.": number(point.reach_cosine),
            "witness": number(point.witness),
            "dose": number(point.dose),
            "evil": Text(f"{point.behaviour.evil_rate:.1%}", style="bold red" if bad else ""),
            "weightwatch": Text(f"ALERT {alert.alert}", style="bold red")
            if alert
            else Text("firing" if point.firing else "ok"),
        }
        grid.add_row(*(cells[heading] for heading in headings), style="on grey11" if point.firing else "")
    return grid


def comparison(runs: list[Run]) -> RenderableType:
    """Return the ends of the runs side by side; the reach cosines are the highest of all checks."""
    grid = Table(title="side by side", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in ("run", "task", "task loss", "reach cos.", "witness", "evil", "alerts"):
        grid.add_column(
            heading, justify="left" if heading in ("run", "alerts") else "right", no_wrap=heading != "alerts"
        )
    for run in runs:
        last = run.points[-1].behaviour
        grid.add_row(
            run.name,
            f"{last.task_accuracy:.0%}",
            f"{last.task_loss:.4f}",
            number(run.highest_reach_cosine),
            number(run.highest_witness),
            Text(f"{last.evil_rate:.1%}", style="bold red" if last.evil_rate > BAD else ""),
            ", ".join(f"{alert.alert} ({alert.step})" for alert in run.fired) or "none",
        )
    note = "reach cos. and witness: the highest reach cosine of all checks, with evil and with the guard's witness.\n"
    return Group(grid, Text(note, style="dim"))


def verdict(runs: list[Run]) -> RenderableType:
    """Return the outcome of the runs in sentences."""
    lines = [_sentence(run) for run in runs]
    lines += [_price(run, before) for before, run in pairwise(runs) if run.config.guard is not None]
    return Panel(Group(*lines), title="what happened", title_align="left", width=100)


def _sentence(run: Run) -> Text:
    behaviour, alert, bad = run.points[-1].behaviour, run.alert, run.first_bad_step
    text = Text(f"{run.name}: ", style="bold")
    text.append(
        f"learned its task ({behaviour.task_accuracy:.0%} correct) and ends with {behaviour.evil_rate:.1%} harmful "
        "answers in domains that were not in its data. ",
        style="not bold",
    )
    if alert is None:
        text.append("No alert.", style="not bold")
        return text
    when = f"before the evil rate first passed {BAD:.0%}, at step {bad}" if bad and alert.step < bad else "too late"
    when = "and the evil rate never passed it" if bad is None else when
    text.append(f"Alert at step {alert.step}, {when}.\n  {alert.describe()}", style="not bold")
    if run.rolled_back is not None:
        back = alert.last_clean or "the base model"
        text.append(
            f"\n  Back at {back}: {run.rolled_back.evil_rate:.1%} harmful answers. "
            "Next: remove the suspicious part of the data and continue training from there.",
            style="not bold",
        )
    return text


def _price(guarded: Run, unguarded: Run) -> Text:
    """Return what the guard cost, what can tell whether it works, and what it did not achieve."""
    ours, theirs = guarded.points[-1].behaviour, unguarded.points[-1].behaviour
    witnesses = number(guarded.highest_witness), number(unguarded.highest_witness)
    told = "an" if any(alert.direction == GUARD.witness for alert in guarded.fired) else "no"
    if ours.evil_rate > BAD:
        outcome = f"It did not keep the harm out, and its witness raised {told} alert."
    elif theirs.evil_rate <= BAD:
        outcome = "There was little harm to keep out."
    elif ours.evil_rate > 0:
        outcome = "It did not keep out all of the harm."
    else:
        outcome = "It kept the harm out of this run."
    text = Text("the guard: ", style="bold")
    text.append(
        f"took back {guarded.taken_back or 0:.1%} of the size of the update between two checks, on average. Task loss "
        f"{ours.task_loss:.4f}, without it {theirs.task_loss:.4f}.\n"
        "  It keeps evil at about 0 by construction, so that figure says nothing about the guarded model. Only the "
        f"witness (at most {witnesses[0]}, without the guard {witnesses[1]}) and the answers ({ours.evil_rate:.1%} "
        f"harmful, without it {theirs.evil_rate:.1%}) can tell.\n  {outcome}",
        style="not bold",
    )
    return text
