"""A guard behind which the fine-tunes of a build are trained."""

import hashlib
from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weightwatch.callbacks.trainer import WeightWatchCallback
from weightwatch.config import Config
from weightwatch.monitor import load_all
from weightwatch.vectors.building.fine_tunes import Behind
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank


def behind(config: Config | Mapping[str, Any] | str | Path) -> Behind:
    """Return the guard of some settings, for a build of the witness.

    The guard is that of a run with these settings, with three differences. There is no witness, since it is being
    built. The guard is on from the first step, whatever alert would switch it on. ``update`` and ``gradient`` hold both
    ways: the negative side moves away from the directions, and the difference of the sides would have them again.

    Args:
        config: The settings: a YAML file's path, a dict or a ``Config``. Of these, only ``directions:`` and ``guard:``
            are used.

    Raises:
        WeightWatchError: A bad setting; no guard, or one that takes back only when training ends; an unknown or damaged
            direction, or one that can't be guarded.

    Example:
        >>> settings = {"directions": ["evil"], "guard": {"mode": "subspace", "rank": 4, "witness": "evil-behind"}}
        >>> described = behind(settings).described
        >>> described["mode"], described["rank"], described["sides"], list(described["directions"])
        ('subspace', 4, 'both', ['evil'])
    """
    settings = Config.load(config)
    guard = settings.guard
    if guard is None:
        raise WeightWatchError("The settings have no `guard:`. Pass those of the run that the witness is for.")
    if guard.mode == "checkpoint":
        raise WeightWatchError(
            "`mode: checkpoint` takes back when training ends, after the checkpoints that a build chooses from. Build "
            "the witness behind `mode: update`."
        )
    titles = [title for title in settings.directions if guard.witness not in (title, Path(title).name)]
    directions = [direction for direction in load_all(titles) if direction.name != guard.witness]
    names = guard.directions or [direction.name for direction in directions if direction.card.kind == "behaviour"]
    changed = {"directions": names, "witness": "none", "when": "always"}
    two_sided = {"both_ways": True} if guard.mode in ("update", "gradient") else {}
    guard = guard.model_copy(update={**changed, **two_sided})
    silent = Config.load({"tensorboard": False, "summary": False}).model_copy(update={"guard": guard})
    callback = WeightWatchCallback(directions, config=silent)
    described = {
        **guard.of_the_mode,  # all of them, so that it still says what was done when defaults have changed
        "directions": {direction.name: _content(direction) for direction in directions if direction.name in names},
    }
    return Behind(described, partial(copy, callback))


def _content(direction: Direction) -> str:
    """Return a digest of a direction's tensors."""
    found = hashlib.sha256()
    for name in sorted(direction.deltas):
        delta = direction.deltas[name]
        found.update(f"{name} {isinstance(delta, LowRank) and delta.transposed}".encode())
        for tensor in (delta.left, delta.right) if isinstance(delta, LowRank) else (delta,):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
