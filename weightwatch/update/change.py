"""How one weight tensor has changed since θ₀, in the form in which it costs least to measure.

* ``LowRank`` (of ``weightwatch.vectors``): an adapter's factors, never multiplied out.
* ``Rescaled``: DoRA's factors, and by how much it stretches each row of the weight beneath.
* ``Difference``: a trained tensor and its θ₀, of which a process may hold only a part.
* ``Streamed``: a tensor on disk and its θ₀ on disk, never local whole.
* ``Merged``: any other adapter; its change has to be worked out in full, one tensor at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.reader import Box


@dataclass(frozen=True)
class Difference:
    """The change of a trained tensor: what this process holds of it now, and a way to read θ₀.

    θ₀ is rounded to the precision that the model computes in first, as it was when the model was loaded.

    Attributes:
        local: The tensor now.
        start: Reads a part of θ₀'s tensor.
    """

    local: LocalTensor
    start: Callable[[Box], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self.local.shape

    def of(self, local: LocalTensor) -> "Difference":
        """Return the change of another part of the tensor."""
        return replace(self, local=local)


@dataclass(frozen=True)
class Streamed:
    """The change of a tensor that is on disk, as θ₀ is: both are read some rows at a time.

    θ₀ is rounded to the precision of the tensor first, as for ``Difference``.

    Attributes:
        shape: Shape of the tensor.
        now: Reads a part of the tensor. Several threads call it at once.
        start: Reads a part of θ₀'s tensor, in the same way.
    """

    shape: tuple[int, ...]
    now: Callable[[Box], Tensor]
    start: Callable[[Box], Tensor]


@dataclass(frozen=True)
class Stretch:
    """What DoRA's change ``d ∘ W₀ + L R`` is made of, beside the R that ``Rescaled`` has at hand.

    Attributes:
        rows: d, shape (out,): by how much each row of W₀ is stretched.
        left: L, shape (out, r), each column already multiplied by its adapter's gain.
        weight: W₀, shape (out, in).
    """

    rows: Tensor
    left: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Rescaled:
    """DoRA's change of a weight: ``d ∘ W₀ + L R``, with a number in d for each row.

    An adapter with the gain g = m / ‖W₀ + B A‖ turns W₀ into ``g ∘ (W₀ + B A)``: d is how far g has moved, and L R
    is how far ``g ∘ B A`` has.

    Attributes:
        factors: The adapters' factors without any gain: their R is that of the change.
        stretch: Works the rest out. It is called once for each measurement and not kept: W₀ may have to be unpacked.
        transposed: The stored weight is the transpose of all this (GPT-2's ``Conv1D``).
    """

    factors: LowRank
    stretch: Callable[[], Stretch]
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that it changes."""
        rows, columns = self.factors.left.shape[0], self.factors.right.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)


@dataclass(frozen=True)
class Merged:
    """The change of a weight that only merging a copy of its layer tells.

    Attributes:
        shape: Shape of the weight.
        dense: Works the change out, in fp32 or more. It is called once for each measurement and not kept.
        device: Where it is worked out.
    """

    shape: tuple[int, ...]
    dense: Callable[[], Tensor]
    device: torch.device


Change: TypeAlias = LowRank | Rescaled | Difference | Streamed | Merged
