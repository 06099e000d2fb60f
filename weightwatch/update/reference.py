"""The reference θ₀: the weights that the update is measured from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.names import by_canonical_name
from weightwatch.vectors.weights.reader import Box


class Weights(Protocol):
    """Full tensors of θ₀, read box by box so that no second copy of the model is in memory."""

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def read(self, name: str, box: Box) -> Tensor:
        """Read a box of a tensor: one slice for each dimension."""
        ...


def places(positions: Tensor, shape: tuple[int, ...]) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Return the indices of positions of a flattened tensor, shape (positions, dimensions)."""
    return (
        np.stack(np.unravel_index(positions.numpy(), shape), axis=-1) if shape else np.zeros((len(positions), 0), int)
    )


def values_at(weights: Weights, name: str, positions: Tensor) -> Tensor:
    """Return the values at some positions of a flattened tensor, in fp32."""
    boxes = [tuple(slice(int(i), int(i) + 1) for i in place) for place in places(positions, weights.shape(name))]
    return torch.stack([weights.read(name, box).reshape(()).float() for box in boxes])


class StateDict:
    """θ₀ in memory: a state dict that was cloned before training.

    Args:
        tensors: Whole tensors by parameter name.

    Raises:
        WeightWatchError: A tensor is a DTensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        sharded = next((name for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")), None)
        if sharded is not None:
            raise WeightWatchError(
                f"{sharded} is spread over processes (a DTensor) in the reference. Pass the path of the base "
                "checkpoint, or a state dict of whole tensors, taken before the model was sharded."
            )
        self._tensors = by_canonical_name(tensors, "The reference")

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str, box: Box) -> Tensor:
        """Read a box of a tensor: one slice for each dimension."""
        return self._tensors[name][box].detach()

    def memory(self, name: str) -> int:
        """Memory address of a tensor."""
        return self._tensors[name].untyped_storage().data_ptr()


Source: TypeAlias = Mapping[str, Tensor] | str | Path


@dataclass(frozen=True)
class Reference:
    """The source of θ₀.

    Attributes:
        weights: θ₀ of fully trained tensors; None if only adapters are trained.
        adapters: Parameters at the start of adapters that did not start at zero; see ``adapters.starts``.
    """

    weights: Weights | None = None
    adapters: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source | None) -> "Reference":
        """Return the reference of a state dict or of a checkpoint's path; None gives an empty one.

        Raises:
            WeightWatchError: There is no readable checkpoint at the path, or the state dict has DTensors.

        Example:
            >>> Reference.of({"weight": torch.ones(2, 1)}).weights.shape("weight")
            (2, 1)
        """
        if source is None:
            return cls()
        return cls(StateDict(source) if isinstance(source, Mapping) else Checkpoint(source))
