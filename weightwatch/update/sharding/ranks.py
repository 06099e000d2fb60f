"""The processes that measure together: each answers for its part, and small sums join the parts.

Every method is collective: all processes call it, in the same order. Alone, each returns what it was given.
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
    """Processes that measure one model together.

    Attributes:
        rank: This one's number.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def world(cls) -> "Ranks":
        """Return all processes of the distributed training; this one alone where there is none."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return ALONE
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def add(self, values: Floats, error: Exception | None = None) -> Floats:
        """Add up the processes' arrays, in fp64.

        Args:
            values: Of the same shape everywhere.
            error: Why this process has nothing to add (its values are then zeros). All have to meet here even so: one
                that stayed away would leave the others waiting for ever.

        Raises:
            Exception: The error that was passed; on the other processes one which says so: a ``WeightWatchError`` if
                all that were passed are, so that all processes go on or none.
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
            raise kind("Another process could not measure its part; its own log says why.")
        return np.array(sums).reshape(values.shape)

    def all(self, holds: bool) -> bool:
        """Whether something holds on every process."""
        return self.count == 1 or float(self.add(np.array([float(holds)]))[0]) == self.count

    def agreed(self, make: Callable[[], T]) -> T:
        """Do on every process what may fail on one, and return what it gave here. For start-up: it pickles.

        Args:
            make: Does it, without a word to the other processes.

        Raises:
            Exception: What ``make`` raises; on the other processes an error that names the process and tells the
                fault: a ``WeightWatchError`` if it is one there, so that all of them go on or none.
        """
        if self.count == 1:
            return make()
        made: list[T] = []
        fault: Exception | None = None
        try:
            made.append(make())
        except Exception as error:
            fault = error
        told = (str(fault) or type(fault).__name__, isinstance(fault, WeightWatchError)) if fault else None
        everywhere = self.each(told)
        if fault is not None:
            raise fault
        for rank, found in enumerate(everywhere):
            if found is not None:
                raise (WeightWatchError if found[1] else RuntimeError)(f"Process {rank} can't be measured: {found[0]}")
        return made[0]

    def from_main(self, make: Callable[[], T]) -> T:
        """Let the main process make a value, and return it on all.

        Raises:
            Exception: What ``make`` raises, on every process.
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
        return both[0]  # type: ignore[return-value]  # what make() gave, after its way through pickle

    def each(self, value: T) -> list[T]:
        """Return the values of all processes, by rank. For start-up: it pickles."""
        if self.count == 1:
            return [value]
        found: list[T | None] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]  # all are filled now

    def gather(self, tensors: Mapping[str, LocalTensor]) -> dict[str, Tensor]:
        """Put small sharded tensors together on every process, in fp32; for adapters' factors, never for weights."""
        if not tensors:
            return {}
        tensors = dict(sorted(tensors.items()))  # in the same order everywhere
        sizes = [prod(local.shape) for local in tensors.values()]
        flat = torch.zeros(sum(sizes), device=_device())
        whole = {}
        for (name, local), part in zip(tensors.items(), flat.split(sizes), strict=True):
            whole[name] = part.view(local.shape)
            for piece in local.pieces:
                whole[name][piece.box] = piece.values.to(part)
        torch.distributed.all_reduce(flat)
        return whole

    def share(self, local: LocalTensor) -> LocalTensor:
        """Return the part of a tensor that this process answers for: of one that all hold whole, some of its rows."""
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

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Ranks()


def _device() -> torch.device:
    """Return where the process group takes its tensors from."""
    if "nccl" in str(torch.distributed.get_backend()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
