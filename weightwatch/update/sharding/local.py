"""Local shards of a parameter: boxes of the whole tensor that this process has in memory."""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.reader import Box

_KNOWN = 1 << 12  # size of the cache: every check asks for the same few shapes


class Piece(NamedTuple):
    """A local box of a tensor.

    Attributes:
        box: A slice for each dimension of the whole tensor; ``()`` for a scalar.
        values: The values in the box, in its shape: a detached view, never a copy. If the engine keeps fp32 master
            weights, these are the masters.
    """

    box: Box
    values: Tensor


class LocalTensor(NamedTuple):
    """The local shards of one parameter.

    Attributes:
        shape: Shape of the whole tensor.
        dtype: Precision of the model's parameter, even if the values are its fp32 masters.
        trained: Whether it requires a gradient.
        sharded: False if every process has the whole tensor; ``pieces`` is then one box.
        pieces: The local boxes. Of a sharded tensor, each element is in the pieces of exactly one process.
        copies: Local boxes that are pieces of another process, where there are replicas of a sharded model.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool
    sharded: bool
    pieces: tuple[Piece, ...]
    copies: tuple[Piece, ...] = ()

    def with_pieces(self, *parts: tuple[Box, Tensor]) -> "LocalTensor":
        """Return the same tensor with other local pieces."""
        return self._replace(pieces=tuple(Piece(*part) for part in parts))


@lru_cache(_KNOWN)
def whole(shape: tuple[int, ...]) -> Box:
    """Return the box of a whole tensor."""
    return tuple(slice(0, size) for size in shape)


def whole_tensor(values: Tensor, trained: bool) -> LocalTensor:
    """Return the local tensor of a parameter that is not sharded."""
    shape = tuple(values.shape)
    return LocalTensor(shape, values.dtype, trained, False, (Piece(whole(shape), values.detach()),))


def of_range(shape: Sequence[int], values: Tensor, start: int) -> tuple[Piece, ...]:
    """Return the pieces of a range of the flattened tensor.

    Args:
        shape: Shape of the whole tensor.
        values: The values in the range, flat.
        start: Position of the first value in the flattened tensor.
    """
    values = values.detach()
    return tuple(
        Piece(box, values[part].view([side.stop - side.start for side in box]))
        for box, part in flat_boxes(shape, start, start + values.numel())
    )


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> list[tuple[Box, slice]]:
    """Split a range of a flattened tensor into boxes of the tensor, at most 2·ndim − 1 of them.

    Args:
        shape: Shape of the whole tensor.
        start: Position of the first element, in row-major order.
        stop: Position after the last element.

    Returns:
        Each box, with the slice of the range that fills it.

    Example:
        >>> flat_boxes((3, 4), 4, 8)
        [((slice(1, 2, None), slice(0, 4, None)), slice(0, 4, None))]
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


def common(one: Box, other: Box) -> Box:
    """Return the intersection of two boxes of a tensor. It is empty if a slice of it does not start before it stops."""
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def within(inner: Box, outer: Box) -> Box:
    """Return the coordinates of a box inside a larger one."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))


def require_all_processes(name: str, engine: str, covered: int) -> None:
    """Refuse a parameter that is sharded over some processes only: the others may have replicas or other weights.

    Args:
        name: Name of the parameter, for the message.
        engine: What shards it, for the message.
        covered: Number of processes that it is sharded over.

    Raises:
        WeightWatchError: These are not all processes.
    """
    world = torch.distributed.get_world_size()
    if covered != world:
        raise WeightWatchError(
            f"{name} is spread by {engine} over {covered} of {world} processes, and the weights of the others are not "
            "known (expert, pipeline and model parallelism are not supported). Use one group or mesh of all processes."
        )
