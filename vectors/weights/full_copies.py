"""Full copies of weights in an adapter's file, beside its factors: ``modules_to_save``, and trained biases."""

from collections.abc import Mapping

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.difference import moved
from weightwatch.vectors.weights.peft_adapter import PeftAdapter
from weightwatch.vectors.weights.tied import unsaved_heads


def starts(adapter: PeftAdapter, tensors: Checkpoint) -> dict[str, str]:
    """Return the names of the full copies, each with the name of its start in the base.

    PEFT copies an embedding and its tied head apart, so that training unties them: these are two weights, and both
    start from the embedding. With ``ensure_weight_tying`` they stay one. It is stored twice, and counts once, under the
    embedding's name.

    Args:
        adapter: The adapter. Its ``model`` tells which head is tied.
        tensors: The tensors in its file.
    """
    names, base = adapter.others(tensors), adapter.model
    tied = unsaved_heads(base, {name: tensors.shape(name) for name in names}) if base is not None else {}
    twice = {n for n, key in tied.items() if key in names and torch.equal(tensors[n], tensors[key])}
    return {name: tied.get(name, name) for name in names if name not in twice}


def changes(adapter: PeftAdapter, base: Mapping[str, Tensor] | None) -> dict[str, Delta]:
    """Return all changes of an adapter: its factors ``B A``, and θ_t − θ₀ of each full copy, in fp32.

    Args:
        adapter: The adapter.
        base: θ₀, needed if the adapter has full copies.

    Raises:
        WeightWatchError: There are full copies, and θ₀ is unknown, lacks one or has it in another shape.
    """
    tensors = adapter.tensors()
    found: dict[str, Delta] = dict(adapter.changes_of(tensors))
    for name, key in starts(adapter, tensors).items():
        kept = f"{adapter.folder} has a full copy of {name}"
        if base is None:
            raise WeightWatchError(
                f"{kept}, and its base ({adapter.base or 'not named'}) is not on this machine, so its change is "
                "unknown. Pass the base."
            )
        if key not in base or base[key].shape != tensors.shape(name):
            shape = f"in shape {tuple(base[key].shape)}" if key in base else "not at all"
            raise WeightWatchError(
                f"{kept} of shape {tensors.shape(name)}, which its base has {shape} (a resized vocabulary, a new "
                "head?), so its change is unknown. Pass the base that it was trained from."
            )
        found[name] = moved(tensors[name], base[key])
    return found
