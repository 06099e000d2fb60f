"""The demonstration on the terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from weightwatch.demo.run import BAD, Run
from weightwatch.report.terminal import number

LEGEND = Text(
    "task: correct answers in the tasks of the fine-tune. evil: harmful answers in held-out domains.\n"
    "Both come from the model's answers at every check; cosine, reach cos. and dose come from its weights.\n",
    style="dim",
)
"""The meaning of the columns."""

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
    grid = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in ("step", "loss", "task", "cosine", "reach cos.", "dose", "evil", "weightwatch"):
        grid.add_column(heading, justify="right" if heading != "weightwatch" else "left", no_wrap=True)
    fired = {alert.step: alert for alert in run.alerts if alert.state == "firing"}
    for point in run.points:
        if point.step % ROW_EVERY and point.step not in (*fired, run.first_bad_step):
            continue
        bad = point.behaviour.evil_rate > BAD
        alert = fired.get(point.step)
        grid.add_row(
            str(point.step),
            f"{point.loss:.2f}",
            f"{point.behaviour.task_accuracy:.0%}",
            number(point.cosine),
            number(point.reach_cosine),
            number(point.dose),
            Text(f"{point.behaviour.evil_rate:.1%}", style="bold red" if bad else ""),
            Text(f"ALERT {alert.alert}", style="bold red") if alert else Text("firing" if point.firing else "ok"),
            style="on grey11" if point.firing else "",
        )
    return grid


def verdict(runs: list[Run]) -> RenderableType:
    """Return the outcome of the runs in sentences."""
    lines = [_sentence(run) for run in runs]
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
