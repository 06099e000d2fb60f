"""Cosines between directions and the task vectors of fine-tunes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

from weightwatch.update.checkpoint import SavedBase, of_weights
from weightwatch.vectors.arithmetic import cosines
from weightwatch.vectors.card import CARD
from weightwatch.vectors.catalog import packaged
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import is_adapter
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.names import indexed
from weightwatch.vectors.weights.reader import Unmapped
from weightwatch.vectors.weights.sources import is_hub_id, local_folder, require_local


@dataclass(frozen=True)
class Comparison:
    """Cosines ⟨a, b⟩ / (‖a‖ ‖b‖) between directions and task vectors, over the whole vectors.

    Attributes:
        names: Names of the directions; folder names of the fine-tunes.
        norms: ‖w‖ or ‖τ‖ of each.
        cosines: One row for each name; NaN where two of them have no tensor in common.

    Example:
        >>> found = Comparison.of(["evil", "evil-witness", "careless"])
        >>> round(found.cosines[0][1], 2), round(found.cosines[0][2], 2)
        (0.42, 0.22)
    """

    names: Sequence[str]
    norms: Sequence[float]
    cosines: Sequence[Sequence[float]]

    @classmethod
    def of(cls, sources: Sequence[str], base: str | None = None) -> "Comparison":
        """Compare directions and fine-tunes.

        Args:
            sources: Directions by name, path or Hub id; adapters and checkpoints by path, or by the Hub id of one in
                the local cache.
            base: The model that the fine-tunes started from. Default: for adapters, what their settings name.

        Raises:
            WeightWatchError: A source is neither a direction nor a fine-tune, a checkpoint is given without its base,
                or two sources have different bases.
        """
        directions = _directions(sources, base)
        matrix = cosines(directions).tolist()
        for i, a in enumerate(directions):
            for j, b in enumerate(directions):
                if a.deltas.keys().isdisjoint(b.deltas):
                    matrix[i][j] = nan
        return cls(_names(sources, directions), [direction.norm for direction in directions], matrix)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document, with null where two have no tensor in common."""
        rows = [[None if isnan(value) else value for value in row] for row in self.cosines]
        return {"names": list(self.names), "norms": list(self.norms), "cosines": rows}


def _directions(sources: Sequence[str], base: str | None) -> list[Direction]:
    """Load the directions and task vectors, in the order of the sources."""
    folders = [_folder(name) for name in sources]
    found = {
        i: Direction.load(folder or name, Unmapped)
        for i, (name, folder) in enumerate(zip(sources, folders, strict=True))
        if folder is None or (folder / CARD).is_file()
    }
    wanted = {name for direction in found.values() for name in direction.deltas if indexed(name)}
    start = under_names(Checkpoint(require_local(base), Unmapped), wanted) if base else None
    if start is not None:
        for direction in found.values():
            direction.require(SavedBase(start), str(base))
    for i, folder in enumerate(folders):
        if i not in found and folder is not None:
            found[i] = _task_vector(sources[i], folder, start, wanted)
    return [found[i] for i in range(len(sources))]


def _folder(name: str) -> Path | None:
    """Return the local folder of a source; None for a packaged direction, or an id that the Hub may have."""
    if Path(name).exists():
        return Path(name)
    folder = local_folder(name) if is_hub_id(name) else None
    if folder is None and name not in packaged() and not is_hub_id(name):
        raise WeightWatchError(f"{name} is not a local folder, a packaged direction or a Hub id.")
    return folder


def _task_vector(name: str, folder: Path, start: Checkpoint | None, wanted: Iterable[str]) -> Direction:
    """Return θ_t − θ₀ of a fine-tune; for a checkpoint, under the parameter names that directions use."""
    title = folder.resolve().name if Path(name).exists() else name
    if is_adapter(folder):
        return Direction.from_fine_tune(folder, start, name=title)
    if start is None:
        raise WeightWatchError(f"{name} is a full checkpoint. Pass --base, the model that it was fine-tuned from.")
    now = under_names(Checkpoint(folder, Unmapped), wanted)
    return Direction.from_fine_tune(now, start, name=title).without(of_weights(now, start).tied)


def _names(sources: Sequence[str], directions: Sequence[Direction]) -> list[str]:
    """Return a unique name for each: its own, or the source where two share a name."""
    names = [direction.name for direction in directions]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]
