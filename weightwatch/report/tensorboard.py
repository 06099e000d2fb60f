"""TensorBoard: a run folder of its own with scalars per direction, layer and module, their layout, and heat maps."""

import html
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from weightwatch.config import OVER_CONTROLS, Rule
from weightwatch.reading.grouping import Layer, split
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.report.charts import MOST
from weightwatch.report.layer_map import LayerMap
from weightwatch.report.plots import pixels
from weightwatch.report.scalars import METRICS, SHARE, TAKEN, scalars
from weightwatch.rules.alert import Alert
from weightwatch.vectors.errors import WeightWatchError

_KEPT = 10_000  # readings that are kept while they can't be written
_LAYER_METRICS = ("cosine", "reach_cosine")


class TensorBoard(Reporter):
    """Writes readings and alerts as TensorBoard events. What can't be written is kept, and written when it can be.

    Args:
        folder: The run folder; nobody else may write events into it.
        history: The record, from which a resumed run takes the first columns of its heat maps.
    """

    def __init__(self, folder: Path, history: History | None = None) -> None:
        self._folder, self._history = folder, history
        self._writer: Any = None
        self._maps: dict[str, LayerMap] = {}
        self._rules: Sequence[Rule] = ()
        self._checks = self._drawn = 0
        self._waiting: deque[tuple[Reading | None, Sequence[Alert], Mapping[str, bool]]] = deque(maxlen=_KEPT)

    def begin(self, run: Run) -> None:
        """Take the directions, and the step from which on events are replaced."""
        names = [direction.name for direction in run.directions]
        controlled = any(direction.card.kind == "control" for direction in run.directions)
        metrics = [metric for metric in METRICS if metric not in OVER_CONTROLS or controlled]
        self._layout = _layout(names, metrics, guarded=run.config.guard is not None)
        if any(rule.baseline is not None for rule in run.config.rules):
            self._layout["directions"]["over the baseline"] = ["Multiline", ["^over_baseline/"]]
        self._rules = run.config.rules
        self._next = run.step + 1 if run.step else 0
        behaviours = [direction.name for direction in run.directions if direction.card.kind != "control"]
        self._maps = {name: LayerMap(name) for name in behaviours or names}
        if run.step and self._history is not None:
            with suppress(OSError, WeightWatchError):  # else the maps begin here
                for reading in self._history.newest(MOST):
                    self._count(reading)

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Write one reading, and as 0 or 1 for each rule whether it fires.

        Whenever the number of checks has doubled, from 4 on, the layers are drawn over the steps, too.
        """
        self._waiting.append((reading, raised, firing))
        self._count(reading)
        self._write()
        if self._checks >= 4 and self._checks & (self._checks - 1) == 0:
            self._draw(reading.step)

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Write alerts as text."""
        self._waiting.append((None, raised, {}))
        self._write()

    def end(self, outcome: Outcome) -> None:
        """Write what is left, draw the layers over the steps, and close the file."""
        self._write()
        try:
            self._draw(outcome.last.step)
        finally:
            self._writer.close()

    def _write(self) -> None:
        """Write what waits. After a fault the writer is of no use any more, and the next call opens another."""
        try:
            if self._writer is None:
                self._writer = self._opened()
            for reading, raised, firing in self._waiting:
                if reading is not None:
                    self._add(reading, firing)
                for alert in raised:
                    self._writer.add_text(f"alerts/{alert.alert}", literal(alert.describe()), alert.step)
            self._writer.flush()
        except BaseException:
            self._writer = None
            raise
        self._next = max([self._next, *(reading.step + 1 for reading, _, _ in self._waiting if reading is not None)])
        self._waiting.clear()

    def _count(self, reading: Reading) -> None:
        self._checks += bool(reading.step)
        for layers in self._maps.values():
            layers.add(reading)

    def _draw(self, step: int) -> None:
        """Write the heat maps as images, unless that is done for these checks."""
        if self._drawn == self._checks:
            return
        for name, layers in self._maps.items():
            figure = layers.figure()
            if figure is not None:
                self._writer.add_image(f"{name}/layers", pixels(figure), step, dataformats="HWC")
        self._writer.flush()
        self._drawn = self._checks

    def _opened(self) -> Any:
        """Open an event file and write the layout of the custom-scalars tab."""
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard drops earlier events from `purge_step` on: a resumed or repeated run writes those steps again.
        writer = SummaryWriter(str(self._folder), purge_step=self._next)
        writer.add_custom_scalars(self._layout)
        return writer

    def _add(self, reading: Reading, firing: Mapping[str, bool]) -> None:
        for rule, fires in firing.items():
            self._writer.add_scalar(f"alerts/{rule}", float(fires), reading.step)
        for tag, value in scalars(reading, self._rules).items():
            self._writer.add_scalar(tag, value, reading.step)
        for name, found in reading.directions.items():
            for layer, score in found.layers.items():
                for metric in _LAYER_METRICS:
                    tag = f"{name}.layers/{metric}/{_padded(layer)}"
                    self._writer.add_scalar(tag, getattr(score, metric), reading.step)
            for module, score in found.modules.items():
                self._writer.add_scalar(f"{name}.modules/cosine/{module}", score.cosine, reading.step)


def literal(text: str) -> str:
    """Return text as Markdown without links, pictures and tags, which TensorBoard would show."""
    return re.sub(r"[\\\[]", r"\\\g<0>", html.escape(text, quote=False))


def event_folder(output: Path) -> Path:
    """Return the run folder for an output folder: beside the trainer's own, or in the shared one under its name."""
    shared = os.environ.get("TENSORBOARD_LOGGING_DIR")
    if shared:
        return Path(shared).expanduser() / f"{output.resolve().name}-weightwatch"
    return output / "runs" / "weightwatch"


def _padded(layer: Layer) -> str:
    """Return a layer so that sorting as text keeps it in its place: ``003``, ``encoder.block.003``."""
    stack, index = split(layer)
    return f"{stack}.{index:03d}".lstrip(".")


def _layout(directions: Sequence[str], metrics: Sequence[str], *, guarded: bool) -> dict[str, dict[str, list[Any]]]:
    """Return the custom-scalars layout: all directions on one chart, then each direction's layers and modules."""
    names = {name: re.escape(name) for name in directions}
    every = "|".join(names.values())
    layout: dict[str, dict[str, list[Any]]] = {}
    layout["directions"] = {metric: ["Multiline", [rf"^(?:{every})/{metric}$"]] for metric in metrics}
    if guarded:
        layout["directions"]["dose taken back"] = ["Multiline", [rf"^(?:{every})/{TAKEN}$"]]
        layout["directions"]["share taken back"] = ["Multiline", [f"^{SHARE}$"]]
    for name, tag in names.items():
        layout[name] = {f"layers: {m}": ["Multiline", [rf"^{tag}\.layers/{m}/"]] for m in _LAYER_METRICS}
        layout[name]["modules: cosine"] = ["Multiline", [rf"^{tag}\.modules/cosine/"]]
    return layout
