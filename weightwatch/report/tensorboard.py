"""TensorBoard: a run folder of its own with similarity scalars per direction, layer and module, and their layout."""

import html
import os
import re
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightwatch.config import OVER_CONTROLS
from weightwatch.reading.grouping import Layer, split
from weightwatch.reading.reading import Reading
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.report.scalars import METRICS, SHARE, TAKEN, scalars
from weightwatch.rules.alert import Alert

_MOST = 10_000  # readings that are kept while they can't be written
_LAYER_METRICS = ("cosine", "reach_cosine")


class TensorBoard(Reporter):
    """Writes readings and alerts as TensorBoard events. What can't be written is kept, and written when it can be.

    Args:
        folder: The run folder; nobody else may write events into it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._waiting: deque[tuple[Reading | None, Sequence[Alert], Mapping[str, bool]]] = deque(maxlen=_MOST)

    def begin(self, run: Run) -> None:
        """Take the directions, and the step from which on events are replaced."""
        names = [direction.name for direction in run.directions]
        controlled = any(direction.card.kind == "control" for direction in run.directions)
        metrics = [metric for metric in METRICS if metric not in OVER_CONTROLS or controlled]
        self._layout = _layout(names, metrics, guarded=run.config.guard is not None)
        self._next = run.step + 1 if run.step else 0

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Write one reading, and as 0 or 1 for each rule whether it fires."""
        self._waiting.append((reading, raised, firing))
        self._write()

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Write alerts as text."""
        self._waiting.append((None, raised, {}))
        self._write()

    def end(self, outcome: Outcome) -> None:
        """Write what is left and close the file."""
        self._write()
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
        for tag, value in scalars(reading).items():
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
