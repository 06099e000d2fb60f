"""The change of one weight tensor since θ₀, in the form that is cheapest to measure.

* ``LowRank`` (of ``weightwatch.vectors``): an adapter's factors, never multiplied out.
* ``Rescaled``: DoRA's factors, and the change of the gain of each row of the base weight.
* ``Difference``: a trained tensor, of which a process may have only shards, and its θ₀.
* ``Streamed``: a tensor on disk and its θ₀ on disk, read block by block.
* ``Merged``: any other adapter; its change is computed as a full tensor, one tensor at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.reader import Box


@dataclass(frozen=True)
class Difference:
    """The change of a trained tensor: its local shards now, and a reader of θ₀.

    θ₀ is first rounded to the precision of the model's parameter, as when the model was loaded.

    Attributes:
        local: The tensor now.
        start: Reads a box of θ₀'s tensor.
        stored: Whether θ₀ is on disk, so that reading takes memory.
    """

    local: LocalTensor
    start: Callable[[Box], Tensor]
    stored: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self.local.shape

    def of(self, local: LocalTensor) -> "Difference":
        """Return the change of other shards of the same tensor."""
        return replace(self, local=local)


@dataclass(frozen=True)
class Streamed:
    """The change of a tensor on disk from θ₀ on disk. Both are read block by block.

    θ₀ is first rounded to the precision of the tensor, as in ``Difference``.

    Attributes:
        shape: Shape of the tensor.
        now: Reads a box of the tensor. Thread-safe.
        start: Reads a box of θ₀'s tensor. Thread-safe.
    """

    shape: tuple[int, ...]
    now: Callable[[Box], Tensor]
    start: Callable[[Box], Tensor]


@dataclass(frozen=True)
class Rescaling:
    """The terms of DoRA's change ``d ∘ W₀ + L R`` other than R, which ``Rescaled.factors`` has.

    Attributes:
        rows: d, shape (out,): the change of each row's gain.
        left: L, shape (out, r): each column is already multiplied by its adapter's gain.
        weight: W₀, shape (out, in).
    """

    rows: Tensor
    left: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Rescaled:
    """DoRA's change of a weight: ``d ∘ W₀ + L R``, where d has one number for each row.

    An adapter with the gain g = m / ‖W₀ + B A‖ turns W₀ into ``g ∘ (W₀ + B A)``: d is the change of g, and L R is the
    change of ``g ∘ B A``.

    Attributes:
        factors: The adapters' factors without gains. Their R is the R of the change.
        rescaling: Computes the other terms. Called once a measurement; its result is not kept, since W₀ may have to be
            dequantised.
        transposed: Whether the model's weight is the transpose of the above (GPT-2's ``Conv1D``).
    """

    factors: LowRank
    rescaling: Callable[[], Rescaling]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the model's weight."""
        rows, columns = self.factors.left.shape[0], self.factors.right.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)


@dataclass(frozen=True)
class Merged:
    """The change of a weight by an adapter that has no factors, or a stack of them (experts).

    Attributes:
        shape: Shape of the weight.
        dense: Computes the change as a full tensor, in fp32 or fp64. Called once a measurement; its result is not kept.
    """

    shape: tuple[int, ...]
    dense: Callable[[], Tensor]


Change: TypeAlias = LowRank | Rescaled | Difference | Streamed | Merged
