"""Pictures for papers and slides, drawn with matplotlib and written to a file; no window is opened."""

from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def heat_map(names: Sequence[str], values: Sequence[Sequence[float]], file: str | Path, title: str = "") -> Path:
    """Draw a matrix of cosines: blue below zero, white at zero, red above, with the numbers in the cells.

    The colours reach as far as the largest cosine off the diagonal, and at least to 0.1, so that the small cosines of
    independent runs are told apart. The diagonal, which is one, is grey; so are cells without a value, and those
    have no number.

    Args:
        names: Of rows and columns.
        values: A row for each name.
        file: Where to; its ending says the format.
        title: Above the picture.

    Returns:
        The file.

    Raises:
        WeightWatchError: The file can't be written, or matplotlib knows no such format.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    count = len(names)
    off = [abs(v) for i, row in enumerate(values) for j, v in enumerate(row) if i != j and not isnan(v)]
    limit = max(0.1, *off) if off else 1.0
    digits = 2 if limit > 0.2 else 3
    shown = [[float("nan") if i == j else v for j, v in enumerate(row)] for i, row in enumerate(values)]
    side = max(3.2, 0.75 * count + 2.2)
    figure = Figure(figsize=(side, side * 0.86), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap=colormaps["RdBu_r"].with_extremes(bad="0.92"), vmin=-limit, vmax=limit)
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks([i - 0.5 for i in range(1, count)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, count)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not isnan(value):
                dark = i != j and abs(value) > 0.6 * limit
                axes.text(
                    j,
                    i,
                    f"{value:.{digits}f}",
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                    fontsize=9,
                )
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.8)
    if title:
        axes.set_title(title)
    return _saved(figure, file)


def curves(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], file: str | Path, labels: tuple[str, str], title: str = ""
) -> Path:
    """Draw shares, from 0 to 1, over a number.

    Args:
        x: The number, rising.
        lines: Values of each line by its name.
        file: Where to.
        labels: Of the two axes.
        title: Above the picture.

    Returns:
        The file.

    Raises:
        WeightWatchError: The file can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, values in lines.items():
        axes.plot(x, values, marker="o", label=name)
    axes.set_ylim(-0.04, 1.04)
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.legend(frameon=False, fontsize=9)
    _labelled(axes, labels, title)
    return _saved(figure, file)


def bars(values: Mapping[str, float], file: str | Path, labels: tuple[str, str], title: str = "") -> Path:
    """Draw a bar for each value.

    Args:
        values: By name.
        file: Where to.
        labels: Of the two axes.
        title: Above the picture.

    Returns:
        The file.

    Raises:
        WeightWatchError: The file can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.0, 0.22 * len(values) + 1.5), 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(list(values), list(values.values()), color="tab:blue")
    axes.tick_params(axis="x", labelrotation=90 if len(values) > 12 else 0, labelsize=8)
    _labelled(axes, labels, title)
    return _saved(figure, file)


def _labelled(axes: "Axes", labels: tuple[str, str], title: str) -> None:
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title)
    axes.spines[["top", "right"]].set_visible(False)


def _saved(figure: "Figure", file: str | Path) -> Path:
    try:
        figure.savefig(file, dpi=160)
    except (OSError, ValueError) as error:
        raise WeightWatchError(f"{file} can't be written ({error}). Pass another file, such as cosines.png.") from error
    return Path(file)
