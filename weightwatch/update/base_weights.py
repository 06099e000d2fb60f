"""The base of a model in training, as the model and its reference tell it: for comparing fingerprints."""

import numpy as np
import torch
from torch import Tensor

from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.adapters import start_factors
from weightwatch.update.reference import Reference, places, values_at
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.names import canonical


class BaseWeights:
    """θ₀ by parameter name: shapes, and single values.

    Args:
        view: The model in training.
        reference: θ₀ where the model doesn't hold it.
    """

    def __init__(self, view: ModelView, reference: Reference) -> None:
        of_adapters = {name for adapted in view.adapters for name in adapted.own}
        others = {n: p for n, p in view.parameters.items() if n not in of_adapters and n not in view.copies}
        self._local = {canonical(name): parameter for name, parameter in others.items()}
        self._weights, self._ranks = reference.weights, view.ranks
        self._starts: dict[str, LowRank] = {}
        if view.changed_by is not None:
            self._starts = start_factors(view.adapters, reference.adapters)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor; None where the base is quantised, so that its values can't be read.

        Raises:
            KeyError: The model has none of that name.
        """
        if self._weights is not None and name in self._weights:
            return self._weights.shape(name)
        local = self._local[name]
        return local.shape if local.dtype.is_floating_point else None

    def values(self, name: str, positions: Tensor) -> Tensor:
        """Return single values of a tensor, in fp32.

        Args:
            name: The tensor.
            positions: Of the values in the flattened tensor.
        """
        if self._weights is not None and name in self._weights:
            return values_at(self._weights, name, positions)
        found = torch.tensor(_values(self._local[name], places(positions, self._local[name].shape)))
        if self._local[name].sharded:
            found = torch.from_numpy(self._ranks.add(found.numpy()))
        if name in self._starts:
            found += self._starts[name].dense().cpu().double().reshape(-1)[positions]
        return found.float()


def _values(local: LocalTensor, where: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> list[float]:
    """Return the values at some places, zero where this process doesn't hold them."""
    found = [0.0] * len(where)
    for piece in local.pieces:
        for i, place in enumerate(where):
            if all(s.start <= at < s.stop for s, at in zip(piece.box, place, strict=True)):
                inside = tuple(int(at - s.start) for s, at in zip(piece.box, place, strict=True))
                found[i] = float(piece.values[inside])
    return found
