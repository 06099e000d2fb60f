"""The base model of a direction: what is noted about it when the direction is made."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.low_rank import Delta
from weightwatch.vectors.weights.checkpoint import Checkpoint, local_folder
from weightwatch.vectors.weights.names import canonical

_logger = logging.getLogger("weightwatch")


def described(
    changes: Mapping[str, Delta], base: str | Path | Mapping[str, Tensor] | None, named: str | None, name: str
) -> dict[str, Any]:
    """Return the fields ``base`` and ``fingerprint`` of a direction's card.

    Args:
        changes: The direction, or tensors of the same names and shapes.
        base: Its base: a folder, an id, or a state dict. Without the weights on this machine there is no fingerprint.
        named: What the fine-tunes name as their base: used where none is given, and to call one by that is given as a
            state dict.
        name: The direction's name, for messages.

    Raises:
        WeightWatchError: The base lacks a tensor of the direction, or has it in another shape.
    """
    base = base or named
    given = base.path if isinstance(base, Checkpoint) else base
    title = named if isinstance(given, Mapping) else str(given) if given else None
    weights = _weights(base)
    if weights is None:
        _logger.warning(
            "weightwatch: the base of direction %r (%s) is not on this machine, so no fingerprint of it is kept "
            "and a wrong base goes unnoticed. Pass base= as a folder or a state dict.",
            name,
            title or "not named",
        )
        return {"base": title}
    missing = sorted(set(changes) - set(weights))
    if missing:
        raise WeightWatchError(f"The base {title} has no {missing[0]}, which the fine-tunes changed.")
    for key in changes:
        found, wanted = (_shape(tensors, key) for tensors in (weights, changes))
        if found != wanted:
            raise WeightWatchError(
                f"The base {title} has shape {found} for {key} where the fine-tunes have {wanted}. "
                "Pass the base that they were trained from."
            )
    return {"base": title, "fingerprint": Fingerprint.of(changes, weights.__getitem__)}


def _weights(base: str | Path | Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    if isinstance(base, Checkpoint):
        return base
    if isinstance(base, Mapping):
        return {canonical(key): tensor for key, tensor in base.items()}
    folder = local_folder(str(base)) if base else None
    return Checkpoint(folder) if folder is not None else None


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, Checkpoint) else tuple(tensors[name].shape)
