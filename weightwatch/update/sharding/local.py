"""Local shards of a parameter: the boxes of the whole tensor that this process has in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.reader import Box


@dataclass(frozen=True)
class Piece:
    """A box of a tensor that this process has in memory.

    Attributes:
        box: Start and stop per dimension of the whole tensor; ``()`` for a scalar.
        values: Of the box's shape: a detached view, never a copy. Where the engine keeps fp32 masters, the masters.
    """

    box: Box
    values: Tensor


@dataclass(frozen=True)
class LocalTensor:
    """The local shards of one parameter.

    Attributes:
        shape: Shape of the whole tensor.
        dtype: Precision of the model's parameter, also where the values are its fp32 masters.
        trained: Whether it requires a gradient.
        sharded: False where every process has all of it; ``pieces`` is then one box, the whole.
        pieces: Where sharded, what this process answers for: over all processes each element occurs exactly once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool
    sharded: bool
    pieces: tuple[Piece, ...]

    def with_pieces(self, *parts: tuple[Box, Tensor]) -> "LocalTensor":
        """Return the same tensor with other local pieces."""
        return replace(self, pieces=tuple(Piece(*part) for part in parts))


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a whole tensor."""
    return tuple([slice(0, size) for size in shape])


def whole_tensor(values: Tensor, trained: bool) -> LocalTensor:
    """Return a parameter that every process has whole."""
    shape = tuple(values.shape)
    return LocalTensor(shape, values.dtype, trained, False, (Piece(whole(shape), values.detach()),))


def of_range(shape: Sequence[int], values: Tensor, start: int) -> tuple[Piece, ...]:
    """Return the pieces that a range of the flattened tensor consists of: ``values``, from element ``start`` on."""
    values = values.detach()
    return tuple(
        Piece(box, values[part].view([side.stop - side.start for side in box]))
        for box, part in flat_boxes(shape, start, start + values.numel())
    )


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> list[tuple[Box, slice]]:
    """Return a range of a flattened tensor as boxes of the tensor, at most 2·ndim − 1 of them.

    Args:
        shape: Shape of the whole tensor.
        start: First element of the range, in row-major order.
        stop: The element after the last.

    Returns:
        Each box, with the part of the range (counted from its start) that fills it.
    """
    if start >= stop:
        return []
    if not shape:
        return [((), slice(0, 1))]
    inner = prod(shape[1:])
    (first, skipped), (last, left) = divmod(start, inner), divmod(stop, inner)
    found: list[tuple[Box, slice]] = []

    def within(row: int, begin: int, end: int) -> None:
        before = row * inner + begin - start
        for box, part in flat_boxes(shape[1:], begin, end):
            found.append(((slice(row, row + 1), *box), slice(before + part.start, before + part.stop)))

    if first == last:
        within(first, skipped, left)
        return found
    if skipped:
        within(first, skipped, inner)
        first += 1
    if first < last:
        found.append(((slice(first, last), *whole(shape[1:])), slice(first * inner - start, last * inner - start)))
    within(last, 0, left)
    return found


def require_all_processes(name: str, engine: str, covered: int) -> None:
    """Refuse groups that are not the whole world: whether the others hold replicas or other weights is not known."""
    world = torch.distributed.get_world_size()
    if covered != world:
        raise WeightWatchError(
            f"{name} is spread by {engine} over {covered} of {world} processes, and what the others hold is not known "
            "(expert, pipeline and model parallelism are not supported). Use one group or mesh of all processes."
        )
