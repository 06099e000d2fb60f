"""Whether directions fit a base model on disk, without loading the model."""

from collections.abc import Sequence
from pathlib import Path

from weightwatch.update.checkpoint import SavedBase
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.steering.checkpoint import matched
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.reader import Unmapped
from weightwatch.vectors.weights.sources import require_local


def misfits(directions: Sequence[Direction], model: str) -> dict[str, str]:
    """Return why directions don't fit a model, by name; nothing for those that do.

    A direction fits if it was built from this model and every tensor of it is there with the same shape.

    Args:
        directions: The directions.
        model: Folder of the model, or the Hub id of one in the local cache.

    Raises:
        WeightWatchError: There is no such model, or its files can't be read.
    """
    folder = require_local(model)
    opened = Checkpoint(folder, Unmapped)
    found = {}
    for direction in directions:
        try:
            _require_fit(direction, opened, folder, model)
        except WeightWatchError as error:
            found[direction.name] = str(error)
    return found


def _require_fit(direction: Direction, opened: Checkpoint, folder: Path, model: str) -> None:
    named = under_names(opened, direction.deltas)
    direction.require(SavedBase(named), model)
    for target, name in matched(named, direction):
        direction.require_shape(name, named.shape(target), str(folder))
