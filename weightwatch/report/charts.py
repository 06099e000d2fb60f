"""Interactive charts of a run, as plotly figures: a figure over the steps, and the layers over the steps."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading, Score
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import worst
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

MOST = 600
"""Checks that a chart shows. Of more, each column is the one with the largest absolute value of its stretch."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#9a7d0a", "#6c3483")


def plain(name: object) -> str:
    """Return a name as text that plotly and browsers show as it is."""
    return escape(printable(name))


def over_steps(
    runs: Mapping[str, Sequence[Reading]],
    direction: str,
    metric: str,
    controls: Sequence[str] = (),
    rules: Sequence[Rule] = (),
    alerts: Sequence[Alert] = (),
) -> "Figure":
    """Return the chart of a figure of the whole model over the steps, a line for each run.

    Args:
        runs: The readings of each run, by its name.
        direction: Name of the direction.
        metric: The figure.
        controls: Names of the controls, whose range is shown as a band where there is one run.
        rules: Rules whose thresholds are drawn, if they are about this direction and figure.
        alerts: Alerts that are marked, if they are of this direction.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    if len(runs) == 1 and controls and metric != "dose":
        (readings,) = runs.values()
        controls = [name for name in controls if all(name in reading.directions for reading in readings)]
        bands = [[getattr(reading[name], metric) for name in controls] for reading in readings]
        steps = [reading.step for reading in readings]
        if controls and all(value is not None for band in bands for value in band):
            low, high = [min(band) for band in bands], [max(band) for band in bands]
            hidden = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            figure.add_trace(Scatter(x=steps, y=high, **hidden))
            figure.add_trace(
                Scatter(**{**hidden, "showlegend": True}, x=steps, y=low, fill="tonexty", name="range of the controls")
            )
    for number, (name, readings) in enumerate(runs.items()):
        shown = [reading for reading in readings if direction in reading.directions]
        figure.add_trace(_line(number, name, shown, [getattr(reading[direction], metric) for reading in shown]))
    for rule in rules:
        if (rule.direction, rule.metric, rule.scope) == (direction, metric, "model"):
            figure.add_hline(rule.threshold, line_dash="dash", annotation_text=plain(rule.alert))
    for alert in alerts:
        if alert.direction == direction and alert.state == "firing":
            figure.add_vline(alert.step, line_dash="dot", annotation_text=f"ALERT {plain(alert.alert)}")
    return _laid_out(figure, f"{plain(direction)}: {metric.replace('_', ' ')}", metric.replace("_", " "))


def over_baseline(
    runs: Mapping[str, tuple[Rule, Sequence[Reading]]], alert: str, alerts: Sequence[Alert] = ()
) -> "Figure":
    """Return the chart of what a rule with a baseline judges over the steps, a line for each run.

    Args:
        runs: The rule of each run, which has its own baseline, and its readings, by the name of the run.
        alert: Name of the rule.
        alerts: Alerts that are marked, if they are of this rule.
    """
    from plotly.graph_objects import Figure

    figure = Figure()
    for number, (name, (rule, readings)) in enumerate(runs.items()):
        figure.add_trace(_line(number, name, readings, [_beyond(rule, reading) for reading in readings]))
    for threshold in sorted({rule.threshold for rule, _ in runs.values()}):
        figure.add_hline(threshold, line_dash="dash", annotation_text=plain(alert))
    for each in alerts:
        if (each.alert, each.metric, each.state) == (alert, "over_baseline", "firing"):
            figure.add_vline(each.step, line_dash="dot", annotation_text=f"ALERT {plain(each.alert)}")
    return _laid_out(figure, f"{plain(alert)}: over the baseline", "over the baseline")


def _beyond(rule: Rule, reading: Reading) -> float | None:
    """Return what a rule judges; None where it can't, or where the run was watched without its controls."""
    with suppress(WeightWatchError):
        return worst(rule, reading)[1]
    return None


def _line(number: int, name: str, readings: Sequence[Reading], values: Sequence[float | None]) -> "Scatter":
    """Return the line of a run, thinned."""
    from plotly.graph_objects import Scatter

    kept = thinned([value or 0.0 for value in values])
    return Scatter(
        x=[readings[at].step for at in kept],
        y=[values[at] for at in kept],
        text=[plain(readings[at].checkpoint or "") for at in kept],
        hovertemplate="step %{x}: %{y:.4f} %{text}",
        mode="lines+markers",
        line={"dash": _DASHES[number % len(_DASHES)], "color": _COLOURS[number % len(_COLOURS)]},
        name=plain(name),
    )


def layers_over_steps(readings: Sequence[Reading], direction: str, *, kinds: bool = False) -> "Figure":
    """Return the heat map of the reach cosine by layer, or by kind of module, over the steps.

    Args:
        readings: The readings of one run.
        direction: Name of the direction.
        kinds: Whether the rows are kinds of module.
    """
    from plotly.graph_objects import Figure, Heatmap

    shown = [reading for reading in readings if direction in reading.directions]
    parts: list[Mapping[Any, Score]] = [
        reading[direction].modules if kinds else reading[direction].layers for reading in shown
    ]
    rows = list(dict.fromkeys(part for each in parts for part in each))
    values = [[each[row].reach_cosine if row in each else None for each in parts] for row in rows]
    kept = thinned(
        [max((abs(v) for line in values if (v := line[at]) is not None), default=0.0) for at in range(len(shown))]
    )
    most = max((abs(v) for line in values for v in line if v is not None), default=0.0) or 1.0
    what = "kind of module" if kinds else "layer"
    figure = Figure(
        Heatmap(
            x=[str(shown[at].step) for at in kept],
            y=[f"{what} {plain(row)}" if not kinds else plain(row) for row in rows],
            z=[[line[at] for at in kept] for line in values],
            zmid=0,
            zmin=-most,
            zmax=most,
            colorscale="RdBu_r",
            hovertemplate="%{y}, step %{x}: %{z:.4f}<extra></extra>",
        )
    )
    return _laid_out(figure, f"{plain(direction)}: reach cosine by {what}", what, height=max(320, 60 + 14 * len(rows)))


def thinned(values: Sequence[float]) -> list[int]:
    """Return the places that are shown: all, or of each stretch the one with the largest absolute value.

    Example:
        >>> thinned([0.1, -0.5, 0.2])
        [0, 1, 2]
        >>> len(thinned([0.0] * 10_000))
        600
    """
    if len(values) <= MOST:
        return list(range(len(values)))
    ends = [number * len(values) // MOST for number in range(MOST + 1)]
    return [max(range(begin, end), key=lambda at: abs(values[at])) for begin, end in pairwise(ends)]


def _laid_out(figure: "Figure", title: str, y: str, height: int = 360) -> "Figure":
    figure.update_layout(
        title=title,
        height=height,
        margin={"l": 60, "r": 20, "t": 50, "b": 45},
        xaxis_title="step",
        yaxis_title=y,
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#7f8c8d"},
        legend={"orientation": "h", "y": -0.2},
    )
    return figure
