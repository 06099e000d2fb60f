"""What ``weightwatch compare`` does: cosines between stored directions and the task vectors of fine-tunes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weightwatch.report.terminal import number
from weightwatch.update.checkpoint import StoredBase, of_weights
from weightwatch.vectors.arithmetic import cosines
from weightwatch.vectors.card import CARD
from weightwatch.vectors.catalog import packaged
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.names import indexed
from weightwatch.vectors.weights.peft_adapter import CONFIG
from weightwatch.vectors.weights.reader import Unmapped
from weightwatch.vectors.weights.sources import is_hub_id, local_folder


@dataclass(frozen=True)
class Comparison:
    """Cosines between directions.

    Attributes:
        names: Of directions, and of fine-tunes by their folders.
        norms: ‖w‖ or ‖τ‖ of each.
        cosines: A row for each; NaN where two have no tensor in common.
    """

    names: Sequence[str]
    norms: Sequence[float]
    cosines: Sequence[Sequence[float]]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON document, with null where two have no tensor in common."""
        rows = [[None if isnan(value) else value for value in row] for row in self.cosines]
        return {"names": list(self.names), "norms": list(self.norms), "cosines": rows}

    def table(self) -> Table:
        """Return it as a table, in which columns go by the numbers of the rows."""
        table = Table(title="weightwatch compare: cosines", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("", justify="right")
        table.add_column("name", overflow="fold")
        table.add_column("norm", justify="right")
        for i, _ in enumerate(self.names, 1):
            table.add_column(str(i), justify="right", no_wrap=True)
        for i, (name, norm, row) in enumerate(zip(self.names, self.norms, self.cosines, strict=True), 1):
            figures = [number(None if isnan(value) else value) for value in row]
            table.add_row(str(i), Text(name), f"{norm:.3g}", *figures)
        return table


def compared(what: Sequence[str], base: str | None, aside: Console) -> Comparison:
    """Compare directions and fine-tunes.

    Args:
        what: Directions by name, path or Hub id; adapters and checkpoints by path or by Hub id in the cache.
        base: What the fine-tunes started from; for adapters it may be left to their settings.
        aside: For progress.

    Raises:
        WeightWatchError: One of them is nothing that has a direction; a checkpoint is given without its base; or they
            are of different bases.
    """
    with aside.status("reading"):
        directions = _directions(what, base)
        matrix = cosines(directions).tolist()
    for i, a in enumerate(directions):
        for j, b in enumerate(directions):
            if a.deltas.keys().isdisjoint(b.deltas):
                matrix[i][j] = nan
    return Comparison(_names(what, directions), [direction.norm for direction in directions], matrix)


def _directions(what: Sequence[str], base: str | None) -> list[Direction]:
    """Return the stored directions and the task vectors, in the order in which they are asked for."""
    folders = [_folder(name) for name in what]
    found = {
        i: Direction.load(folder or name, Unmapped)
        for i, (name, folder) in enumerate(zip(what, folders, strict=True))
        if folder is None or (folder / CARD).is_file()
    }
    wanted = {name for direction in found.values() for name in direction.deltas if indexed(name)}
    start = _base(base, wanted) if base else None
    if start is not None:
        for direction in found.values():
            direction.require(StoredBase(start), str(base))
    for i, folder in enumerate(folders):
        if i not in found and folder is not None:
            found[i] = _task_vector(what[i], folder, start, wanted)
    return [found[i] for i in range(len(what))]


def _folder(name: str) -> Path | None:
    """Return where something lies on this machine; None for a packaged direction and for what the Hub may have."""
    if Path(name).exists():
        return Path(name)
    folder = local_folder(name) if is_hub_id(name) else None
    if folder is None and name not in packaged() and not is_hub_id(name):
        raise WeightWatchError(f"{name} is no folder here, no packaged direction and no id of the Hub.")
    return folder


def _base(base: str, wanted: Iterable[str]) -> Checkpoint:
    folder = local_folder(base)
    if folder is None:
        raise WeightWatchError(f"The base {base} is no folder here, nor a model in the Hub's cache. Download it first.")
    return under_names(Checkpoint(folder, Unmapped), wanted)


def _task_vector(name: str, folder: Path, start: Checkpoint | None, wanted: Iterable[str]) -> Direction:
    """Return what a fine-tune did to its base; of a checkpoint, under the names that directions use."""
    title = folder.resolve().name if Path(name).exists() else name
    if (folder / CONFIG).is_file():
        return Direction.from_fine_tune(folder, start, name=title)
    if start is None:
        raise WeightWatchError(f"{name} is a checkpoint of full weights. Pass --base, the folder that it started from.")
    now = under_names(Checkpoint(folder, Unmapped), wanted)
    return Direction.from_fine_tune(now, start, name=title).without(of_weights(now, start).tied)


def _names(what: Sequence[str], directions: Sequence[Direction]) -> list[str]:
    """Return a name for each that no other one has."""
    names = [direction.name for direction in directions]
    return [name if names.count(name) == 1 else given for name, given in zip(names, what, strict=True)]
