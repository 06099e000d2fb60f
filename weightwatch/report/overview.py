"""Runs as one picture: their verdicts, the reach cosines over the steps, and the layers over the steps."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from weightwatch.reading.reading import Reading
from weightwatch.record.recorded_run import RecordedRun
from weightwatch.report.html import verdict
from weightwatch.report.layer_map import LayerMap
from weightwatch.report.plots import drawable, labelled, saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(runs: Sequence[RecordedRun], file: str | Path) -> Path:
    """Draw runs as one picture.

    It has a row for each behaviour direction: the reach cosine of the whole model over the steps, a line for each run,
    with the thresholds of the first run's rules; then for each run a heat map of the reach cosine by layer.

    Args:
        runs: The runs.
        file: File to write; its suffix sets the format.

    Returns:
        The file.

    Raises:
        WeightWatchError: A record is damaged, or the file can't be written.
    """
    from matplotlib.figure import Figure

    readings = [run.readings() for run in runs]
    names = _watched(runs[0])
    figure = Figure(figsize=(5.6 * (1 + len(runs)), 3.4 * len(names) + 0.5 * len(runs)), layout="constrained")
    rows = figure.subplots(len(names), 1 + len(runs), squeeze=False)
    for name, (curves, *maps) in zip(names, rows, strict=True):
        _draw_curves(curves, runs, readings, name)
        for axes, run, found in zip(maps, runs, readings, strict=True):
            _draw_map(axes, run, found, name)
        images = [image for axes in maps for image in axes.get_images()]
        most = max((image.get_clim()[1] for image in images), default=1.0)
        for image in images:  # one scale, to compare the runs by eye
            image.set_clim(-most, most)
    told = [fill(f"{run.title}: {verdict(run)}", 60 * (1 + len(runs))) for run in runs]
    figure.suptitle(
        "\n".join(drawable(line) for text in told for line in text.splitlines()), fontsize=10, x=0.01, ha="left"
    )
    return saved(figure, file)


def _watched(run: RecordedRun) -> list[str]:
    """Return the names of the behaviour directions; of all, if there are only controls."""
    controls = run.setup.controls if run.setup is not None else []
    return [name for name in run.last.directions if name not in controls] or list(run.last.directions)


def _draw_curves(axes: "Axes", runs: Sequence[RecordedRun], readings: Sequence[Sequence[Reading]], name: str) -> None:
    for run, found in zip(runs, readings, strict=True):
        shown = [reading for reading in found if name in reading.directions]
        values = [reading[name].reach_cosine for reading in shown]
        axes.plot([reading.step for reading in shown], values, marker=".", label=drawable(run.title))
        for alert in run.alerts:
            if alert.direction == name and alert.state == "firing":
                axes.axvline(alert.step, color="tab:red", linestyle=":", linewidth=1)
    rules = runs[0].config.rules if runs[0].config is not None else []
    for rule in rules:
        if (rule.direction, rule.metric, rule.scope) == (name, "reach_cosine", "model"):
            axes.axhline(rule.threshold, color="0.4", linestyle="--", linewidth=1, label=drawable(rule.alert))
    axes.legend(frameon=False, fontsize=8)
    labelled(axes, ("step", "reach cosine"), name)


def _draw_map(axes: "Axes", run: RecordedRun, readings: Sequence[Reading], name: str) -> None:
    layers = LayerMap(name)
    for reading in readings:
        layers.add(reading)
    layers.draw(axes, f"{run.title}: {name}")
