"""TensorBoard: a run folder of its own with similarity scalars per direction, layer and module, and their layout."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightwatch.reading.grouping import Layer, split
from weightwatch.reading.reading import Reading
from weightwatch.rules.alert import Alert

METRICS = ("cosine", "reach_cosine", "dose", "z")
_LAYER_METRICS = ("cosine", "reach_cosine")


class Dashboard:
    """Writes readings and alerts as TensorBoard events.

    Args:
        folder: The run folder; nobody else may write events into it.
        directions: Names, for the layout of the custom-scalars tab.
        metrics: Which of ``METRICS`` get a chart of all directions there.
        first_step: Step from which on events of an earlier run in the folder are void. Default 0: all of them.
    """

    def __init__(
        self, folder: Path, directions: Sequence[str], *, metrics: Sequence[str] = METRICS, first_step: int = 0
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops earlier events from `purge_step` on: a resumed or repeated run writes those steps again.
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_step)
        self._writer.add_custom_scalars(_layout(directions, metrics))

    def show(self, reading: Reading, firing: Mapping[str, bool]) -> None:
        """Write one reading, and as 0 or 1 for each rule whether it fires."""
        for rule, fires in firing.items():
            self._writer.add_scalar(f"alerts/{rule}", float(fires), reading.step)
        for tag, value in scalars(reading).items():
            self._writer.add_scalar(tag, value, reading.step)
        for name, found in reading.directions.items():
            for layer, score in found.layers.items():
                for metric in _LAYER_METRICS:
                    tag = f"{name}.layers/{metric}/{_padded(layer)}"
                    self._writer.add_scalar(tag, getattr(score, metric), reading.step)
            for module, score in found.modules.items():
                self._writer.add_scalar(f"{name}.modules/cosine/{module}", score.cosine, reading.step)
        self._writer.flush()

    def announce(self, alert: Alert) -> None:
        """Write one alert as text."""
        self._writer.add_text(f"alerts/{alert.alert}", alert.describe(), alert.step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()


def scalars(reading: Reading) -> dict[str, float]:
    """Return the figures of the whole model under the tags that TensorBoard and other trackers show.

    Example:
        ``{"update_norm": 1.31, "evil/cosine": 0.34, "evil/reach_cosine": 0.47, "evil/dose": 0.12, …}``
    """
    found = {"update_norm": reading.update_norm}
    for name, direction in reading.directions.items():
        values = {f"{name}/{metric}": getattr(direction, metric) for metric in METRICS}
        found.update({tag: value for tag, value in values.items() if value is not None})  # z is not there everywhere
    return found


def _padded(layer: Layer) -> str:
    """Return a layer so that sorting as text keeps it in its place: ``003``, ``encoder.block.003``."""
    stack, index = split(layer)
    return f"{stack}.{index:03d}".lstrip(".")


def _layout(directions: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the custom-scalars layout: all directions on one chart, then each direction's layers and modules."""
    names = {name: re.escape(name) for name in directions}
    every = "|".join(names.values())
    layout: dict[str, dict[str, list[Any]]] = {}
    layout["directions"] = {metric: ["Multiline", [rf"^(?:{every})/{metric}$"]] for metric in metrics}
    for name, tag in names.items():
        layout[name] = {f"layers: {m}": ["Multiline", [rf"^{tag}\.layers/{m}/"]] for m in _LAYER_METRICS}
        layout[name]["modules: cosine"] = ["Multiline", [rf"^{tag}\.modules/cosine/"]]
    return layout
