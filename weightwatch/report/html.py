"""The report of one run or several: a self-contained page, or Markdown, from their records alone."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.record.recorded_run import RecordedRun
from weightwatch.report.base import Outcome
from weightwatch.report.charts import MOST, layers_over_steps, over_baseline, over_steps, plain
from weightwatch.report.terminal import closing, number
from weightwatch.vectors.printable import printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LIMITS = (
    "A figure tells how far the weights have moved along a direction that somebody chose. It is evidence about "
    "behaviour, and no measurement of it.",
    "Only the directions that were watched are seen. A direction is as good as its contrast.",
    "A threshold belongs to one base model and one kind of training. A calibrated rule says for which, and how often "
    "harmless runs pass it; of a threshold that was chosen by hand nobody knows.",
    "A guard sets the figures of its own directions to zero by construction. Look at its witness.",
)
"""What the figures can't say."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2833; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; }
td, th { padding: .25rem .7rem; border-bottom: 1px solid #d5d8dc; text-align: left; }
.bad { border-left: .4rem solid #c0392b; padding-left: .8rem; }
.good { border-left: .4rem solid #1e8449; padding-left: .8rem; }
.open { border-left: .4rem solid #7f8c8d; padding-left: .8rem; }
pre { background: #8881; padding: .8rem; overflow-x: auto; font-size: 13px; }
@media (prefers-color-scheme: dark) {
  body { background: #17202a; color: #eaecee; }
  td, th { border-color: #566573; }
}
"""


def page(runs: Sequence[RecordedRun]) -> str:
    """Return the report as one HTML page that needs no network.

    Args:
        runs: The runs; several are drawn into the same charts.
    """
    from plotly.offline import get_plotlyjs

    parts = [f"<h1>weightwatch: {', '.join(plain(run.title) for run in runs)}</h1>"]
    for run in runs:
        ruled = run.config is None or bool(run.config.rules)
        colour = "bad" if any(alert.state == "firing" for alert in run.alerts) else "good" if ruled else "open"
        parts.append(f'<p class="{colour}"><b>{plain(run.title)}</b>: {escape(verdict(run))}</p>')
    parts += _charts(runs)
    for run in runs:
        parts.append(f"<h2>{plain(run.title)}: figures at step {run.last.step}</h2>{_table(figures(run))}")
        if run.alerts:
            told = "".join(f"<li>{escape(alert.describe())}</li>" for alert in run.alerts)
            parts.append(f"<h2>{plain(run.title)}: alerts</h2><ol>{told}</ol>")
        if (guard := guarded(run)) is not None:
            parts.append(f"<h2>{plain(run.title)}: the guard</h2><p>{escape(guard)}</p>")
        if run.config is not None:
            parts.append(f"<h2>{plain(run.title)}: settings</h2><pre>{escape(run.config.to_yaml())}</pre>")
    limits = "".join(f"<li>{escape(text)}</li>" for text in LIMITS)
    parts.append(f"<h2>What the figures can't say</h2><ul>{limits}</ul>")
    head = f'<meta charset="utf-8"><title>weightwatch</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def markdown(runs: Sequence[RecordedRun]) -> str:
    """Return the report as Markdown, without charts."""
    lines = []
    for run in runs:
        lines += [f"# weightwatch: {_cell(run.title)}", "", verdict(run), ""]
        head, *rows = figures(run)
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
        lines += ["", *(f"{n}. {alert.describe()}" for n, alert in enumerate(run.alerts, 1)), ""]
        if (guard := guarded(run)) is not None:
            lines += [guard, ""]
    return "\n".join([*lines, "What the figures can't say:", "", *(f"- {text}" for text in LIMITS)]) + "\n"


def verdict(run: RecordedRun) -> str:
    """Return what came of a run, in a sentence or two."""
    state = "It goes on." if run.live else f"It was recorded up to step {run.last.step}, in {run.checks} checks."
    if run.config is not None and any(rule.default for rule in run.config.rules):
        state += " The thresholds are defaults, which are not calibrated."
    fired = [alert for alert in run.alerts if alert.state == "firing"]
    if fired:
        first = fired[0]
        back = first.last_clean or "no clean checkpoint"
        now = f"firing now: {', '.join(run.firing)}" if run.firing else "none fires now"
        return printable(f"{first.alert} fired at step {first.step} ({now}); last clean checkpoint: {back}. {state}")
    if run.config is not None and not run.config.rules:
        return f"There were no rules, so no alerts. {state}"
    return f"No alert. {state}"


def figures(run: RecordedRun) -> list[list[str]]:
    """Return the newest figures of a run as a table: a heading, and a row for each direction."""
    rows = [["direction", "cosine", "reach cosine", "its peak", "at step", "dose", "over controls"]]
    for name, found in run.last.directions.items():
        peak, step = run.peaks[name]
        cells = [number(found.cosine), number(found.reach_cosine), number(peak), str(step)]
        rows.append([printable(name), *cells, number(found.dose), number(found.over_controls)])
    return rows


def guarded(run: RecordedRun) -> str | None:
    """Return what a guard did, and what it took back of the update; None without one."""
    guard = run.config.guard if run.config is not None else None
    if guard is None:
        return None
    return closing(Outcome(run.last, run.peaks, run.alerts, run.taken), guard).removeprefix("weightwatch: ")


def _charts(runs: Sequence[RecordedRun]) -> list[str]:
    titles = [run.title for run in runs]
    alike = {title for title in titles if titles.count(title) > 1}
    keys = [str(run.record) if run.title in alike else run.title for run in runs]
    readings = {key: run.readings() for key, run in zip(keys, runs, strict=True)}
    first = runs[0]
    controls = sorted(first.setup.controls) if first.setup is not None else []
    rules = first.config.rules if first.config is not None else []
    alerts = [alert for run in runs for alert in run.alerts]
    watched = [name for name in first.last.directions if name not in controls]
    figures = []
    for name in watched:
        metrics = {"reach_cosine", *(rule.metric for rule in rules if rule.direction == name and not rule.baseline)}
        figures += [over_steps(readings, name, metric, controls, rules, alerts) for metric in sorted(metrics)]
        figures += _over_baselines(dict(zip(keys, runs, strict=True)), readings, name)
        for kinds in (False, True):
            maps = {title: layers_over_steps(found, name, kinds=kinds) for title, found in readings.items()}
            most = max(figure.data[0].zmax for figure in maps.values())  # one scale, to compare the runs by eye
            for title, figure in maps.items():
                figure.update_traces(zmin=-most, zmax=most)
                figures.append(figure.update_layout(title=f"{plain(title)}, {figure.layout.title.text}"))
    bar = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    parts = [figure.to_html(full_html=False, include_plotlyjs=False, config=bar) for figure in figures]
    if any(len(found) > MOST for found in readings.values()):
        parts.append(f"<p>Of more than {MOST} checks, the charts show the largest of each stretch.</p>")
    return parts


def _over_baselines(
    runs: Mapping[str, RecordedRun], readings: Mapping[str, Sequence[Reading]], direction: str
) -> list["Figure"]:
    """Return a chart for each rule with a baseline about a direction, with the runs that have it."""
    found: dict[str, dict[str, tuple[Rule, Sequence[Reading]]]] = {}
    for title, run in runs.items():
        for rule in run.config.rules if run.config is not None else []:
            if rule.baseline is not None and rule.direction == direction:
                found.setdefault(rule.alert, {})[title] = (rule, readings[title])
    return [
        over_baseline(of_runs, name, [alert for title in of_runs for alert in runs[title].alerts])
        for name, of_runs in found.items()
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in body)
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
