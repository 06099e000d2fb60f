"""Which part of each parameter this process holds."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from weightwatch.vectors.names import unwrapped

Box: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """A part of a tensor: where it lies in the whole, and its values."""

    box: Box
    values: Tensor


@dataclass(frozen=True)
class Held:
    """What this process holds of one parameter."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool
    sharded: bool
    pieces: tuple[Piece, ...]

    def holding(self, *parts: tuple[Box, Tensor]) -> "Held":
        """Return the same tensor with other parts of it held here."""
        return replace(self, pieces=tuple(Piece(*part) for part in parts))


def whole(shape: tuple[int, ...]) -> Box:
    """Return the box of a whole tensor."""
    return tuple(slice(0, size) for size in shape)


def held(model: nn.Module) -> dict[str, Held]:
    """Return what this process holds of each parameter."""
    return {
        unwrapped(name): Held(
            tuple(p.shape),
            p.dtype,
            p.requires_grad,
            False,
            (Piece(whole(tuple(p.shape)), p.detach()),),
        )
        for name, p in model.named_parameters()
    }
