"""Single values of θ₀ of a model in training, for comparing fingerprints."""

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
    """Shapes and single values of θ₀, by parameter name.

    Values come from the reference, or for frozen weights from the model itself. An adapter such as PiSSA that changed
    the base when it was created is added to it again.

    Args:
        view: The model in training.
        reference: θ₀ of what is trained.
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
        """Return the shape of a tensor; None if it is quantised, so that its values can't be read.

        Raises:
            KeyError: The model has no tensor of that name.
        """
        if self._weights is not None and name in self._weights:
            return self._weights.shape(name)
        local = self._local[name]
        return local.shape if local.dtype.is_floating_point else None

    def values(self, name: str, positions: Tensor) -> Tensor:
        """Return single values of a tensor, in fp32. Collective if the tensor is sharded.

        Args:
            name: Name of the tensor.
            positions: Positions of the values in the flattened tensor.
        """
        if self._weights is not None and name in self._weights:
            return values_at(self._weights, name, positions)
        found = torch.tensor(
            _values(self._local[name], places(positions, self._local[name].shape)), dtype=torch.float64, device="cpu"
        )
        if self._local[name].sharded:
            found = torch.from_numpy(self._ranks.add(found.numpy()))
        if name in self._starts:
            found += self._starts[name].dense().cpu().double().reshape(-1)[positions]
        return found.float()


def _values(local: LocalTensor, where: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]") -> list[float]:
    """Return the values at some places; zero if they are not local."""
    found = [0.0] * len(where)
    for piece in local.pieces:
        for i, place in enumerate(where):
            if all(s.start <= at < s.stop for s, at in zip(piece.box, place, strict=True)):
                inside = tuple(int(at - s.start) for s, at in zip(piece.box, place, strict=True))
                found[i] = float(piece.values[inside])
    return found
