"""The base of a model in training, as the model and its reference tell it: for comparing fingerprints."""

import numpy as np
import torch
from torch import Tensor, nn

from weightwatch.update.live import Parts
from weightwatch.update.peft.adapters import changes_base, start_factors
from weightwatch.update.reference import Reference, places, values_at
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.update.sharding.shards import Held
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.names import canonical


def base_name(model: nn.Module) -> str:
    """Return the path or Hub id that a model's config says it was loaded from; empty where it says nothing."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def tied_names(model: nn.Module) -> set[str]:
    """Return the further names of parameters that several names share: a tied head, under the head's name."""
    every = {canonical(n) for n, _ in model.named_parameters(remove_duplicate=False)}
    return every - {canonical(n) for n, _ in model.named_parameters()}


class Base:
    """θ₀ by parameter name: shapes, and single values.

    Args:
        model: The model in training.
        reference: θ₀ where the model doesn't hold it.
        ranks: The processes that hold the model together.
    """

    def __init__(self, model: nn.Module, reference: Reference, ranks: Ranks = ALONE) -> None:
        parts = Parts(model)
        own = {name for layer in parts.layers for name in layer.own}
        self._held = {canonical(n): p for n, p in parts.parameters.items() if n not in own and n not in parts.copies}
        self._weights, self._ranks = reference.weights, ranks
        self._starts: dict[str, LowRank] = {}
        if changes_base(model) is not None:
            self._starts = start_factors(parts.layers, reference.adapters)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor; None where the base is quantised, so that its values can't be read.

        Raises:
            KeyError: The model has none of that name.
        """
        if self._weights is not None and name in self._weights:
            return self._weights.shape(name)
        held = self._held[name]
        return held.shape if held.dtype.is_floating_point else None

    def values(self, name: str, positions: Tensor) -> Tensor:
        """Return single values of a tensor, in fp32.

        Args:
            name: The tensor.
            positions: Of the values in the flattened tensor.
        """
        if self._weights is not None and name in self._weights:
            return values_at(self._weights, name, positions)
        found = torch.tensor(_values(self._held[name], places(positions, self._held[name].shape)))
        if self._held[name].sharded:
            found = torch.from_numpy(self._ranks.add(found.numpy()))
        if name in self._starts:
            found += self._starts[name].dense().cpu().double().reshape(-1)[positions]
        return found.float()


def _values(held: Held, where: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> list[float]:
    """Return the values at some places, zero where this process doesn't hold them."""
    found = [0.0] * len(where)
    for piece in held.pieces:
        for i, place in enumerate(where):
            if all(s.start <= at < s.stop for s, at in zip(piece.box, place, strict=True)):
                inside = tuple(int(at - s.start) for s, at in zip(piece.box, place, strict=True))
                found[i] = float(piece.values[inside])
    return found
