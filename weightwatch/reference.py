"""The reference θ₀: the weights that the update is measured from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from torch import Tensor

from weightwatch.shards import Box
from weightwatch.vectors.checkpoint import Checkpoint
from weightwatch.vectors.names import canonical


class Weights(Protocol):
    """Full tensors of θ₀, read by parts so that no whole copy of the model is ever held."""

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def read(self, name: str, box: Box) -> Tensor:
        """Read a part of a tensor: one slice for each dimension."""
        ...


class StateDict:
    """Weights held in memory, for instance a state dict that was cloned before training."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {canonical(name): tensor for name, tensor in tensors.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str, box: Box) -> Tensor:
        """Read a part of a tensor: one slice for each dimension."""
        return self._tensors[name][box].detach()


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
            WeightWatchError: There is no readable checkpoint at the path.
        """
        if source is None:
            return cls()
        return cls(StateDict(source) if isinstance(source, Mapping) else Checkpoint(source))
