"""Samples of weights: a few values of each tensor, by which a change of a tensor is noticed without reading it whole.

The sample of a tensor is a run of up to 16 consecutive elements. Its place follows from the tensor's name and shape, so
it is the same in every process and in every run. A process samples what is local.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from math import prod
from typing import TypeAlias
from zlib import crc32

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor, common, flat_boxes, within
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.vectors.weights.reader import Box

_RUN = 16
_KNOWN = 1 << 16  # size of the cache: every check asks for the same tensors
_ROUNDINGS = 32.0  # units of rounding error that merging and unmerging an adapter many times may leave
_SMALL = 1 / 64  # of a tensor's values: below this size, the rounding error is that of the adapter's product

Read: TypeAlias = Callable[[str, Box], Tensor]
"""Reads a box of a tensor, given its name."""


class Samples:
    """Sampled values of several tensors, as far as they are local.

    Args:
        runs: The local parts of the sample of each tensor, flat.

    Example:
        >>> one, other = Samples({"a": [torch.ones(2)]}), Samples({"a": [torch.tensor([1.0, 2.0])]})
        >>> one.changed(one), one.changed(other)
        ({}, {'a': True})
    """

    def __init__(self, runs: Mapping[str, Sequence[Tensor]]) -> None:
        groups: dict[tuple[torch.dtype, torch.device], list[tuple[str, Tensor]]] = {}
        for name, parts in runs.items():
            for part in parts:
                if type(part) is Tensor and not part.is_meta:  # neither quantised by a library nor offloaded
                    groups.setdefault((part.dtype, part.device), []).append((name, part))
        self._lines = {key: [(name, len(part)) for name, part in parts] for key, parts in groups.items()}
        self._values = {key: torch.cat([part for _, part in parts]) for key, parts in groups.items()}

    def changed(self, now: "Samples") -> dict[str, bool]:
        """Compare with later samples of the same tensors, byte by byte.

        Args:
            now: The later samples. A tensor that only one side has, or of which another part is local, is skipped.

        Returns:
            The names of the tensors that differ. The value is false if the difference may be rounding: what is left
            when an adapter is merged into the weight and taken out again. In fp32, that is nearly nothing.
        """
        if self._lines == now._lines and all(
            torch.equal(self._values[key].view(torch.uint8), now._values[key].view(torch.uint8)) for key in self._values
        ):
            return {}
        before, after = self._by_name(), now._by_name()
        return {
            name: _beyond_rounding(before[name], values)
            for name, values in after.items()
            if name in before and before[name].shape == values.shape and _differ(before[name], values)
        }

    def _by_name(self) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for key, lines in self._lines.items():
            parts = self._values[key].cpu().split([size for _, size in lines])
            for (name, _), part in zip(lines, parts, strict=True):
                found.setdefault(name, []).append(part)
        return {name: torch.cat(parts) for name, parts in found.items()}


class Digest(BaseModel):
    """A hash of the sampled values of several tensors.

    Attributes:
        tensors: Hash of their names, shapes and precisions. Digests of other tensors can't be compared.
        values: Hash of the values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensors: str
    values: str

    @classmethod
    def of(cls, tensors: Mapping[str, LocalTensor], read: Read, ranks: Ranks) -> "Digest":
        """Sample tensors on all processes. Collective.

        Args:
            tensors: The local shards of each tensor.
            read: Returns their values, which are rounded to the precision of the model's parameter.
            ranks: The processes that have the shards. Each element is read by one of them.
        """

        def local() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
            table = np.zeros((len(tensors), _RUN))
            for line, (name, tensor) in enumerate(tensors.items()):
                for box, where, _ in _local_parts(name, ranks.share(tensor)):
                    table[line, where] = read(name, box).to(tensor.dtype).double().reshape(-1).cpu().numpy()
            return table

        values = ranks.add(ranks.agreed(local))
        kinds = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()]
        return cls(tensors=_hash(repr(kinds).encode()), values=_hash(values.tobytes()))


def of_model(tensors: Mapping[str, LocalTensor]) -> Samples:
    """Sample tensors of a model.

    Args:
        tensors: Their local shards.
    """
    return Samples({name: list(_now(name, local)) for name, local in tensors.items()})


def of_source(tensors: Mapping[str, LocalTensor], read: Read) -> Samples:
    """Sample the tensors of a source of θ₀ where a model has its local shards.

    Args:
        tensors: The local shards in the model.
        read: Reads a box of the source.
    """
    return Samples(
        {name: [read(name, box).reshape(-1) for box in _boxes(name, local)] for name, local in tensors.items()}
    )


def value(tensors: Mapping[str, LocalTensor]) -> Read:
    """Return a reader of boxes of a model's tensors, each of which lies in one local piece."""

    def read(name: str, box: Box) -> Tensor:
        for piece in tensors[name].pieces:
            if common(box, piece.box) == box:
                return piece.values[within(box, piece.box)]
        raise KeyError(name)

    return read


def _now(name: str, local: LocalTensor) -> Iterator[Tensor]:
    if not local.sharded:
        (piece,) = local.pieces
        return (piece.values[box].reshape(-1) for box, _ in _places(name, local.shape))
    return (
        piece.values[within(box, piece.box)].reshape(-1)
        for box, _, place in _local_parts(name, local)
        for piece in [local.pieces[place]]
    )


def _boxes(name: str, local: LocalTensor) -> Iterator[Box]:
    """Yield the local boxes of a tensor's sample."""
    if local.sharded:
        return (box for box, _, _ in _local_parts(name, local))
    return (box for box, _ in _places(name, local.shape))


@lru_cache(_KNOWN)
def _places(name: str, shape: tuple[int, ...]) -> tuple[tuple[Box, slice], ...]:
    """Return the boxes of a tensor that its sample consists of, each with its range of the sample."""
    size = prod(shape)
    first = crc32(name.encode()) % max(1, size // _RUN) * _RUN
    return tuple(flat_boxes(shape, first, min(first + _RUN, size)))


def _local_parts(
    name: str, local: LocalTensor
) -> Iterator[tuple[Box, "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", int]]:
    """Yield the boxes of a tensor's sample that are local, each with its positions in the sample and its piece."""
    for box, part in _places(name, local.shape):
        positions = np.arange(part.start, part.stop).reshape([side.stop - side.start for side in box])
        for number, piece in enumerate(local.pieces):
            here = common(box, piece.box)
            if all(side.start < side.stop for side in here):
                yield here, positions[within(here, box)].reshape(-1), number


def _differ(before: Tensor, now: Tensor) -> bool:
    if before.dtype != now.dtype:  # the model was cast
        return not torch.equal(before.to(now.dtype), now)
    return not torch.equal(before.view(torch.uint8), now.view(torch.uint8))


def _beyond_rounding(before: Tensor, now: Tensor) -> bool:
    """Whether a difference of two samples is more than the rounding errors of merging and unmerging an adapter."""
    if not (before.dtype.is_floating_point and now.dtype.is_floating_point):
        return True
    unit = max(torch.finfo(before.dtype).eps, torch.finfo(now.dtype).eps)
    was, here = before.double(), now.double()
    size = torch.maximum(was.abs(), here.abs()) + _SMALL * float(was.square().mean()) ** 0.5
    return not bool(((here - was).abs() <= _ROUNDINGS * unit * size).all())


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()[:16]
