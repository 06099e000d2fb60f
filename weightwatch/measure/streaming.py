"""Measuring tensors on disk, with only a few blocks in memory at a time."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor

from weightwatch.measure.dense import along
from weightwatch.measure.kernel import pass_over
from weightwatch.update.change import Streamed
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.difference import moved
from weightwatch.vectors.weights.reader import Box, boxes

_BLOCK = 1 << 21  # elements per block
_AHEAD = 8  # blocks queued per thread

Summed = tuple[str, Tensor, dict[int, Tensor]]
"""A tensor's name, its ‖τ‖², and ⟨τ,w⟩ by the position of each direction that has it: fp64 scalars."""


def stream(changes: Mapping[str, Streamed], directions: Sequence[Direction]) -> Iterator[Summed]:
    """Yield the sums of each tensor, in the order of the changes.

    Each of torch's threads reads and sums one block at a time. The sums of the blocks are added in the order of the
    blocks.
    """
    if not changes:
        return
    threads = torch.get_num_threads()
    ahead = sum(prod(c.shape) * (1 + sum(n in d.deltas for d in directions)) for n, c in changes.items())
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[list[float]]] = deque()
        tasks = (
            (change, box, [(k, d) for k, d in enumerate(directions) if name in d.deltas], name, ahead)
            for name, change in changes.items()
            for box in boxes(change.shape, _BLOCK)
        )
        try:
            for name, change in changes.items():
                found = [k for k, d in enumerate(directions) if name in d.deltas]
                sums = torch.zeros(1 + len(found), dtype=torch.float64, device="cpu")
                for _ in boxes(change.shape, _BLOCK):
                    while len(waiting) < _AHEAD * threads and (task := next(tasks, None)) is not None:
                        waiting.append(pool.submit(_block, *task))
                    sums = sums + torch.tensor(waiting.popleft().result(), dtype=torch.float64, device="cpu")
                yield name, sums[0], dict(zip(found, sums[1:], strict=True))
        finally:
            for future in waiting:
                future.cancel()
            pool.shutdown()
            torch.set_num_threads(threads)


def _block(change: Streamed, box: Box, found: Sequence[tuple[int, Direction]], name: str, ahead: int) -> list[float]:
    """Return ‖τ‖² and the ⟨τ,w⟩ of one block as numbers; a waiting tensor would keep the memory of the block."""
    with torch.no_grad():  # this setting is per thread; the others that make sums exact are global
        now = change.now(box)
        before = change.start(box).reshape(now.shape)
        low = {k: w for k, d in found if isinstance(w := _factors(d, name), LowRank)}
        dense = [k for k, _ in found if k not in low]
        parts = [d.part(name, box).reshape(-1) for k, d in found if k not in low]
        own, *sums = pass_over(now.reshape(-1), before.reshape(-1), parts, now.dtype, ahead=ahead).tolist()
        inner = dict(zip(dense, sums, strict=True))
        if low:
            block = moved(now, before)
            inner.update({k: float(along(w, block, box)) for k, w in low.items()})
        return [own, *(inner[k] for k, _ in found)]


def _factors(direction: Direction, name: str) -> LowRank | None:
    """Return a direction's factors of a tensor; None if it is dense. A tensor on disk is not read."""
    if direction.on_disk:
        return None
    delta = direction.deltas[name]
    return delta if isinstance(delta, LowRank) else None
