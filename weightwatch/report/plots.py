"""Plots for papers, slides and dashboards, drawn with matplotlib."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weightwatch.reading.grouping import Layer
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def heat_map(names: Sequence[str], values: Sequence[Sequence[float]], file: str | Path) -> Path:
    """Draw a matrix of cosines as a heat map: blue below zero, white at zero, red above, with the numbers in the cells.

    The colour scale ends at the largest absolute cosine off the diagonal, but not below 0.1: the small cosines of
    independent runs stay distinct. The diagonal is grey. Cells without a value are grey and have no number.

    Args:
        names: Names of the rows and columns.
        values: One row for each name; NaN where there is no value.
        file: File to write; its suffix sets the format.

    Returns:
        The file.

    Raises:
        WeightWatchError: The file can't be written, or matplotlib does not support its format.
    """
    from matplotlib import colormaps

    count = len(names)
    off = [abs(v) for i, row in enumerate(values) for j, v in enumerate(row) if i != j and not isnan(v)]
    limit = max(0.1, *off) if off else 1.0
    digits = 2 if limit > 0.2 else 3
    shown = [[float("nan") if i == j else v for j, v in enumerate(row)] for i, row in enumerate(values)]
    side = max(3.2, 0.75 * count + 2.2)
    figure, axes = empty(side, side * 0.86)
    image = axes.imshow(shown, cmap=colormaps["RdBu_r"].with_extremes(bad="0.92"), vmin=-limit, vmax=limit)
    shown_names = [drawable(name) for name in names]
    axes.set_xticks(range(count), shown_names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), shown_names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([i - 0.5 for i in range(1, count)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not isnan(value):
                dark = i != j and abs(value) > 0.6 * limit
                colour = "white" if dark else "black"
                text = f"{value:.{digits}f}" if round(value, digits) or not value else f"{value:.0e}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    return saved(figure, file)


def curves(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], file: str | Path, labels: tuple[str, str], title: str
) -> Path:
    """Draw shares between 0 and 1 as lines.

    Args:
        x: Positions on the x axis, in ascending order.
        lines: Shares at these positions, by the name of the line.
        file: File to write; its suffix sets the format.
        labels: Labels of the x and y axes.
        title: Title of the plot.

    Returns:
        The file.

    Raises:
        WeightWatchError: See ``heat_map``.
    """
    figure, axes = empty(5.6, 3.6)
    for name, values in lines.items():
        axes.plot(x, values, marker="o", label=name)
    axes.set_ylim(-0.04, 1.04)
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.legend(frameon=False, fontsize=9)
    labelled(axes, labels, title)
    return saved(figure, file)


def bars(values: Mapping[str, float], file: str | Path, labels: tuple[str, str], title: str) -> Path:
    """Draw one bar for each value.

    Args:
        values: Values by name.
        file: File to write; its suffix sets the format.
        labels: Labels of the x and y axes.
        title: Title of the plot.

    Returns:
        The file.

    Raises:
        WeightWatchError: See ``heat_map``.
    """
    figure, axes = empty(max(4.0, 0.22 * len(values) + 1.5), 3.2)
    axes.bar([drawable(name) for name in values], list(values.values()), color="tab:blue")
    axes.tick_params(axis="x", labelrotation=90 if len(values) > 12 else 0, labelsize=8)
    labelled(axes, labels, title)
    return saved(figure, file)


def layers_over_steps(axes: "Axes", steps: Sequence[int], columns: Sequence[Mapping[Layer, float]], title: str) -> None:
    """Draw a heat map of the reach cosine by layer (rows) and check (columns).

    Args:
        axes: Where it is drawn.
        steps: The step of each column.
        columns: Reach cosines by layer.
        title: Title of the plot.
    """
    from matplotlib import colormaps

    rows = list(dict.fromkeys(layer for column in columns for layer in column))
    values = np.array([[column.get(row, np.nan) for column in columns] for row in rows])
    most = float(np.nanmax(np.abs(values))) or 1.0
    colours = colormaps["RdBu_r"].with_extremes(bad="0.92")
    image = axes.imshow(values, cmap=colours, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    for axis, names in ((axes.xaxis, steps), (axes.yaxis, rows)):
        places = np.unique(np.linspace(0, len(names) - 1, 8).round().astype(int))
        axis.set_ticks(places, [drawable(str(names[place])) for place in places])
    axes.figure.colorbar(image, ax=axes, label="reach cosine")
    labelled(axes, ("step", "layer"), title)


def pixels(figure: "Figure") -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return a plot as an image: height × width × 3, from 0 to 255."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def empty(width: float, height: float) -> "tuple[Figure, Axes]":
    """Return an empty plot of a size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def labelled(axes: "Axes", labels: tuple[str, str], title: str) -> None:
    """Label the x and y axes of a plot, and give it its title."""
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(drawable(title))
    axes.spines[["top", "right"]].set_visible(False)


def drawable(name: str) -> str:
    """Return a name that matplotlib draws as it is: a dollar sign would begin a formula."""
    return printable(name).replace("$", r"\$")


def saved(figure: "Figure", file: str | Path) -> Path:
    """Write a plot to a file, and return the file.

    Raises:
        WeightWatchError: See ``heat_map``.
    """
    try:
        figure.savefig(file, dpi=160)
    except (OSError, ValueError) as error:
        raise WeightWatchError(f"{file} can't be written ({error}). Pass another file, such as cosines.png.") from error
    return Path(file)
