"""The reference θ₀: the weights that the update is measured from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightwatch.update.frozen import FrozenBase
from weightwatch.update.peft.modules import Start
from weightwatch.update.samples import Samples, of_source
from weightwatch.update.sharding.local import LocalTensor
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
        frozen: The weights that were frozen when the run began; None before it begins.
        sampled: Samples of ``weights`` when the run began; None before it begins.
        taken: Whether the start of the adapters was taken, or restored.
    """

    weights: Weights | None = None
    adapters: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: FrozenBase | None = None
    sampled: Samples | None = None
    taken: bool = False

    @cached_property
    def start(self) -> Start:
        """The adapters at the start of the run."""
        return Start(self.adapters, self.frozen.adapters if self.frozen is not None else None, self.taken)

    def sample(self, tensors: Mapping[str, LocalTensor]) -> Samples:
        """Sample ``weights`` as they are now, where a model has its local shards.

        Args:
            tensors: The local shards of fully trained tensors. Those of which θ₀ is not here or has another shape are
                skipped.
        """
        weights = self.weights
        if weights is None:
            return Samples({})
        known = {n: t for n, t in tensors.items() if n in weights and weights.shape(n) == t.shape}
        return of_source(known, weights.read)

    def require_unchanged(self, tensors: Mapping[str, LocalTensor]) -> None:
        """Make sure that ``weights`` still are what they were when the run began.

        Raises:
            WeightWatchError: They have been overwritten.
        """
        changed = self.sampled.changed(self.sample(tensors)) if self.sampled is not None else {}
        if changed:
            source = getattr(self.weights, "path", None)
            raise WeightWatchError(
                f"θ₀ has changed since the run began: {next(iter(changed))} of {source or 'the reference'} has other "
                "values now, so the update can't be measured. Restore what was overwritten, or start a new run."
            )

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
