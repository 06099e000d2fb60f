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
from weightwatch.vectors.printable import printable

_EXAMPLES = 3
"""Answers that are shown side by side."""

ALONE = ("step", "loss", "task", "cosine", "reach cos.", "dose", "bad", "weightwatch")
COMPARED = ("step", "task", "reach cos.", "witness", "dose", "bad", "weightwatch")
"""Columns of a run, and of one that is compared with a guarded run; there is no room for all in 80 columns."""


def legend(run: Run) -> Text:
    """Return the meaning of the columns."""
    task = "task: correct answers in the tasks of the fine-tune. " if run.has_task else ""
    source = "Both come" if run.has_task else "It comes"
    return Text(
        f"{task}{run.direction}: {run.bad} answers in held-out domains.\n"
        f"{source} from the model's answers at every check; cosine, reach cos. and dose come from its weights.\n",
        style="dim",
    )


@contextmanager
def live(console: Console, run: Run) -> Iterator[Callable[[Run], None]]:
    """Show the table of a run while it trains; yields a function to call after each check.

    Where there is no terminal, each row of the table is a line before the table comes. Such lines are not part of a
    picture, as the earlier states of the table in a terminal are not.
    """
    if not console.is_terminal:

        def tell(latest: Run) -> None:
            point = latest.points[-1]
            if point.step % run.row_every == 0:
                reached = f"{run.name}: step {point.step}, reach cosine {number(point.reach_cosine)}"
                recording, console.record = console.record, False
                console.print(f"{reached}, {run.bad} answers {point.behaviour.bad_rate:.1%}", highlight=False)
                console.record = recording

        yield tell
        console.print(table(run))
        return
    with Live(table(run), console=console, auto_refresh=False) as display:
        yield lambda latest: display.update(table(latest), refresh=True)
    console.print()


def table(run: Run) -> RenderableType:
    """Return the checks of a run as a table, beside the behaviour of the model; see ``legend``."""
    title = f"{run.name} fine-tune" + (f", {run.poison:.0%} of its data {run.bad} in one domain" if run.poison else "")
    compared = any(point.witness is not None for point in run.points)
    headings = [each for each in (COMPARED if compared else ALONE) if each != "task" or run.has_task]
    grid = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in headings:
        title = run.direction if heading == "bad" else heading
        grid.add_column(title, justify="right" if heading != "weightwatch" else "left", no_wrap=True)
    fired = {alert.step: alert for alert in run.alerts if alert.state == "firing"}
    for point in run.points:
        if point.step % run.row_every and point.step not in (*fired, run.first_bad_step):
            continue
        bad = point.behaviour.bad_rate > BAD
        alert = fired.get(point.step)
        cells: dict[str, str | Text] = {
            "step": str(point.step),
            "loss": f"{point.loss:.2f}",
            "task": _percent(point.behaviour.task_accuracy),
            "cosine": number(point.cosine),
            "reach cos.": number(point.reach_cosine),
            "witness": number(point.witness),
            "dose": number(point.dose),
            "bad": Text(f"{point.behaviour.bad_rate:.1%}", style="bold red" if bad else ""),
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
            _percent(last.task_accuracy),
            _loss(last.task_loss),
            number(run.highest_reach_cosine),
            number(run.highest_witness),
            Text(f"{last.bad_rate:.1%}", style="bold red" if last.bad_rate > BAD else ""),
            ", ".join(f"{alert.alert} ({alert.step})" for alert in run.fired) or "none",
        )
    note = "reach cos. and witness: the highest reach cosine of all checks, with evil and with the guard's witness.\n"
    return Group(grid, Text(note, style="dim"))


def answers(run: Run) -> RenderableType:
    """Return the answers of a run's model to its examples, before and after, side by side."""
    shown = sum(example.shows for example in run.examples)
    title = f"{len(run.examples)} questions that were not in its data, {shown} {run.bad} answers; {_EXAMPLES} of them, "
    title += f"{run.bad} answers first"
    grid = Table(title=title, title_justify="left", title_style="bold", show_lines=True)
    for heading, share in (("question", 2), ("before", 3), (f"after the {run.name} fine-tune", 3)):
        grid.add_column(heading, ratio=share)
    for example in run.examples[:_EXAMPLES]:
        grid.add_row(*(Text(printable(text)) for text in (example.question, example.before, example.after)))
    return grid


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _loss(loss: float | None) -> str:
    return "–" if loss is None else f"{loss:.4f}"


def verdict(runs: list[Run]) -> RenderableType:
    """Return the outcome of the runs in sentences."""
    lines = [_sentence(run) for run in runs]
    lines += [_price(run, before) for before, run in pairwise(runs) if run.config.guard is not None]
    return Panel(Group(*lines), title="what happened", title_align="left", width=100)


def _sentence(run: Run) -> Text:
    behaviour, alert, bad = run.points[-1].behaviour, run.alert, run.first_bad_step
    text = Text(f"{run.name}: ", style="bold")
    learned = f"learned its task ({behaviour.task_accuracy:.0%} correct) and " if run.has_task else ""
    text.append(
        f"{learned}ends with {behaviour.bad_rate:.1%} {run.bad} answers in domains that were not in its data. ",
        style="not bold",
    )
    if alert is None:
        text.append("No alert.", style="not bold")
        return text
    rate = f"the rate of {run.bad} answers"
    if bad is None:
        when = f"and {rate} never passed {BAD:.0%}"
    else:
        when = f"before {rate} first passed {BAD:.0%}, at step {bad}" if alert.step < bad else "too late"
    text.append(f"Alert at step {alert.step}, {when}.\n  {alert.describe()}", style="not bold")
    if run.rolled_back is not None:
        back = alert.last_clean or "the base model"
        text.append(
            f"\n  Back at {back}: {run.rolled_back.bad_rate:.1%} {run.bad} answers. "
            "Next: remove the suspicious part of the data and continue training from there.",
            style="not bold",
        )
    return text


def _price(guarded: Run, unguarded: Run) -> Text:
    """Return what the guard cost, what can tell whether it works, and what it did not achieve."""
    ours, theirs = guarded.points[-1].behaviour, unguarded.points[-1].behaviour
    witnesses = number(guarded.highest_witness), number(unguarded.highest_witness)
    told = "an" if any(alert.direction == GUARD.witness for alert in guarded.fired) else "no"
    if ours.bad_rate > BAD:
        outcome = f"It did not keep the harm out, and its witness raised {told} alert."
    elif theirs.bad_rate <= BAD:
        outcome = "There was little harm to keep out."
    elif ours.bad_rate > 0:
        outcome = "It did not keep out all of the harm."
    else:
        outcome = "It kept the harm out of this run."
    text = Text("the guard: ", style="bold")
    text.append(
        f"took back {guarded.taken_back or 0:.1%} of the size of the update between two checks, on average. Task loss "
        f"{_loss(ours.task_loss)}, without it {_loss(theirs.task_loss)}.\n"
        "  It keeps evil at about 0 by construction, so that figure says nothing about the guarded model. Only the "
        f"witness (at most {witnesses[0]}, without the guard {witnesses[1]}) and the answers ({ours.bad_rate:.1%} "
        f"harmful, without it {theirs.bad_rate:.1%}) can tell.\n  {outcome}",
        style="not bold",
    )
    return text
