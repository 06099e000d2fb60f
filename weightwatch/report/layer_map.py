"""The layers over the steps, of a bounded number of checks, as heat maps."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightwatch.reading.grouping import Layer
from weightwatch.reading.reading import Reading
from weightwatch.report.plots import empty, layers_over_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MOST = 1200
"""Columns of a map."""


class LayerMap:
    """The reach cosine of each layer along one direction, at each check.

    Its memory is bounded: of many checks, a column stands for a stretch of them, and is the one with the largest
    absolute value.

    Args:
        direction: Name of the direction.
    """

    def __init__(self, direction: str) -> None:
        self._direction = direction
        self._columns: list[tuple[int, Mapping[Layer, float]]] = []
        self._stretch, self._open = 1, 0  # checks of a column, and of the last one so far

    def add(self, reading: Reading) -> None:
        """Add a check. At step 0 nothing has moved yet."""
        found = reading.directions.get(self._direction)
        if not reading.step or found is None or not found.layers:
            return
        column = reading.step, {layer: score.reach_cosine for layer, score in found.layers.items()}
        if self._open < self._stretch and self._columns:
            self._columns[-1] = max(self._columns[-1], column, key=_largest)
            self._open += 1
            return
        if len(self._columns) == _MOST:
            pairs = zip(self._columns[::2], self._columns[1::2], strict=True)
            self._columns = [max(pair, key=_largest) for pair in pairs]
            self._stretch *= 2
        self._columns.append(column)
        self._open = 1

    def figure(self) -> "Figure | None":
        """Return the heat map; None without a check."""
        if not self._columns:
            return None
        figure, axes = empty(6.4, min(16.0, 1.6 + 0.14 * len(self._columns[-1][1])))
        self.draw(axes, self._direction)
        return figure

    def draw(self, axes: "Axes", title: str) -> None:
        """Draw the heat map on given axes; nothing without a check."""
        if self._columns:
            steps, columns = zip(*self._columns, strict=True)
            layers_over_steps(axes, steps, columns, title)


def _largest(column: tuple[int, Mapping[Layer, float]]) -> float:
    return max(map(abs, column[1].values()))
