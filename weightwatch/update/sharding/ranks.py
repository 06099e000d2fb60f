"""The processes that measure together: each measures its shards, and one small ``all_reduce`` adds up the sums.

The methods that communicate are collective: all processes call them in the same order. With one process they do
nothing but return their input.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.errors import WeightWatchError

T = TypeVar("T")
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Ranks:
    """The processes that measure one model together.

    Attributes:
        rank: Rank of this process.
        count: Number of processes.

    Example:
        >>> Ranks().main, Ranks(rank=1, count=4).main
        (True, False)
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def world(cls) -> "Ranks":
        """Return all processes of the default group of torch.distributed; this one alone if there is no group."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return ALONE
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this is the main process, which writes files."""
        return self.rank == 0

    def add(self, values: Floats, error: Exception | None = None) -> Floats:
        """Sum an array over all processes, in fp64.

        Args:
            values: The array, of the same shape on all processes.
            error: The error because of which this process has no values; ``values`` are then zeros. A process that
                failed has to call this too, or the others would wait for it forever.

        Raises:
            Exception: On a process that passed an error, that error. On the others a ``WeightWatchError`` if all passed
                errors are of that class, else a ``RuntimeError``, so that all processes stop or none does.
        """
        if self.count == 1:
            if error is not None:
                raise error
            return values
        faults = [float(error is not None), float(not isinstance(error, WeightWatchError | None))]
        sent = torch.from_numpy(np.append(values.reshape(-1), faults)).to(_device())
        torch.distributed.all_reduce(sent)
        *sums, failed, unforeseen = sent.tolist()
        if error is not None:
            raise error
        if failed:
            kind = RuntimeError if unforeseen else WeightWatchError
            raise kind("Another process could not measure its shards. The log of that process has the reason.")
        return np.array(sums).reshape(values.shape)

    def all(self, condition: bool) -> bool:
        """Whether a condition is true on all processes."""
        return self.count == 1 or float(self.add(np.array([float(condition)]))[0]) == self.count

    def agreed(self, make: Callable[[], T]) -> T:
        """Call a function on every process; if it fails on one, raise on all. Pickles, so use it at start-up only.

        Args:
            make: The function. It must not communicate.

        Returns:
            The local result.

        Raises:
            Exception: On a process where ``make`` failed, its error. On the others an error with the rank and the
                message: a ``WeightWatchError`` if the error is one, else a ``RuntimeError``.
        """
        if self.count == 1:
            return make()
        made: list[T] = []
        fault: Exception | None = None
        try:
            made.append(make())
        except Exception as error:
            fault = error
        message = (str(fault) or type(fault).__name__, isinstance(fault, WeightWatchError)) if fault else None
        everywhere = self.each(message)
        if fault is not None:
            raise fault
        for rank, found in enumerate(everywhere):
            if found is not None:
                raise (WeightWatchError if found[1] else RuntimeError)(f"Process {rank} can't be measured: {found[0]}")
        return made[0]

    def from_main(self, make: Callable[[], T]) -> T:
        """Call a function on the main process, and return its result on all processes.

        Raises:
            Exception: The error of ``make``, on all processes.
        """
        if self.count == 1:
            return make()
        made: list[T | None] = [None]
        error: list[Exception | None] = [None]
        if self.main:
            try:
                made[0] = make()
            except Exception as fault:
                error[0] = fault
        both: list[object] = [*made, *error]
        torch.distributed.broadcast_object_list(both, src=0, device=_device())
        if isinstance(both[1], Exception):
            raise both[1]
        return both[0]  # type: ignore[return-value]  # the result of make(), pickled and unpickled

    def each(self, value: T) -> list[T]:
        """Return the values of all processes, by rank. Pickles, so use it at start-up only."""
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # all are filled now

    def gather(self, tensors: Mapping[str, LocalTensor]) -> dict[str, Tensor]:
        """Gather sharded tensors on every process, in fp32. Meant for adapters' factors, which are small."""
        if not tensors:
            return {}
        tensors = dict(sorted(tensors.items()))  # in the same order everywhere
        sizes = [prod(local.shape) for local in tensors.values()]
        flat = torch.zeros(sum(sizes), dtype=torch.float32, device=_device())
        whole = {}
        for (name, local), part in zip(tensors.items(), flat.split(sizes), strict=True):
            whole[name] = part.view(local.shape)
            for piece in local.pieces:
                whole[name][piece.box] = piece.values.to(part)
        torch.distributed.all_reduce(flat)
        return whole

    def share(self, local: LocalTensor) -> LocalTensor:
        """Return the part of a tensor that this process measures: its shards, or some rows if it is not sharded."""
        if local.sharded or self.count == 1:
            return local
        if not local.shape:
            return local if self.main else local.with_pieces()
        rows = local.shape[0]
        first, last = rows * self.rank // self.count, rows * (self.rank + 1) // self.count
        (piece,) = local.pieces
        if first == last:
            return local.with_pieces()
        return local.with_pieces(((slice(first, last), *piece.box[1:]), piece.values[first:last]))


ALONE = Ranks()


def _device() -> torch.device:
    """Return the device of the tensors that the process group communicates."""
    if "nccl" in str(torch.distributed.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
