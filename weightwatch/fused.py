"""One pass over a tensor (stand-in until the kernel branch lands)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from weightwatch.vectors.delta import blocks


def pass_over(now: Tensor, before: Tensor, directions: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Return the sums."""
    dtype = dtype or now.dtype
    sums = torch.zeros(1 + len(directions), dtype=torch.float64, device=now.device)
    for n, b, *ws in zip(blocks(now), blocks(before), *[blocks(w) for w in directions], strict=True):
        change = n.float() - b.to(dtype).float()
        sums += torch.stack([(change * x.float()).sum().double() for x in (change, *ws)])
    return sums
