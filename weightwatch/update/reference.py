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
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.reader import Box


class Weights(Protocol):
    """Full tensors of θ₀, read by parts so that no whole copy of the model is ever held."""

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def read(self, name: str, box: Box) -> Tensor:
        """Read a part of a tensor: one slice for each dimension."""
        ...


def places(positions: Tensor, shape: tuple[int, ...]) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Return where positions of a flattened tensor are in the tensor: a row of indices for each."""
    return (
        np.stack(np.unravel_index(positions.numpy(), shape), axis=-1) if shape else np.zeros((len(positions), 0), int)
    )


def values_at(weights: Weights, name: str, positions: Tensor) -> Tensor:
    """Return the values at some positions of a flattened tensor, in fp32."""
    boxes = [tuple(slice(int(i), int(i) + 1) for i in place) for place in places(positions, weights.shape(name))]
    return torch.stack([weights.read(name, box).reshape(()).float() for box in boxes])


class StateDict:
    """Weights held in memory, for instance a state dict that was cloned before training.

    Raises:
        WeightWatchError: A tensor is spread over processes.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        sharded = next((name for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")), None)
        if sharded is not None:
            raise WeightWatchError(
                f"{sharded} is spread over processes (a DTensor) in the reference. Pass the path of the base "
                "checkpoint, or a state dict of whole tensors, taken before the model was sharded."
            )
        self._tensors = {canonical(name): tensor for name, tensor in tensors.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str, box: Box) -> Tensor:
        """Read a part of a tensor: one slice for each dimension."""
        return self._tensors[name][box].detach()

    def memory(self, name: str) -> int:
        """Address of the memory that a tensor lies in."""
        return self._tensors[name].untyped_storage().data_ptr()


Source: TypeAlias = Mapping[str, Tensor] | str | Path


@dataclass(frozen=True)
class Reference:
    """Where θ₀ is read from.

    Attributes:
        weights: θ₀ of fully trained tensors; None where only adapters train.
        adapters: The adapters' parameters at the start, of layers whose change was not zero then; see
            ``adapters.starts``.
    """

    weights: Weights | None = None
    adapters: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source | None) -> "Reference":
        """Make a reference of a state dict or a checkpoint's path; None gives an empty one.

        Raises:
            WeightWatchError: There is no readable checkpoint at the path; tensors are spread over processes.
        """
        if source is None:
            return cls()
        return cls(StateDict(source) if isinstance(source, Mapping) else Checkpoint(source))
