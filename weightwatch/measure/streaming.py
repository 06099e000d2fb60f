"""Measuring tensors that stay on disk: a few blocks are in memory at a time, however large a tensor or a model is."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from weightwatch.measure.dense import along
from weightwatch.measure.kernel import pass_over
from weightwatch.update.change import Streamed
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide
from weightwatch.vectors.weights.difference import moved
from weightwatch.vectors.weights.reader import Box, boxes

_BLOCK = 1 << 21  # elements that a thread reads at a time
_AHEAD = 8  # blocks that are handed out before the first of them is asked back

Summed = tuple[str, Tensor, dict[int, Tensor]]
"""A tensor's name, its ‖τ‖², and ⟨τ,w⟩ by the position of each direction that has it: fp64 scalars."""


def stream(changes: Mapping[str, Streamed], directions: Sequence[Direction]) -> Iterator[Summed]:
    """Yield the sums of each tensor, in the order of the changes.

    As many threads as torch may use read and add up, each a block of its own; a block's sums are joined in the order
    of the blocks, so that the same files give the same figures.
    """
    if not changes:
        return
    threads = torch.get_num_threads()
    # glibc hands freed blocks back to the system and faults them in anew, until it has seen a larger one come and go.
    torch.empty((1 << 25) - (1 << 16), dtype=torch.uint8)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[list[float]]] = deque()
        tasks = (
            (change, box, [(k, d) for k, d in enumerate(directions) if name in d.deltas], name)
            for name, change in changes.items()
            for box in boxes(change.shape, _BLOCK)
        )
        try:
            for name, change in changes.items():
                found = [k for k, d in enumerate(directions) if name in d.deltas]
                sums = wide(torch.zeros(1 + len(found)))
                for _ in boxes(change.shape, _BLOCK):
                    while len(waiting) < _AHEAD * threads and (task := next(tasks, None)) is not None:
                        waiting.append(pool.submit(_block, *task))
                    sums = sums + torch.tensor(waiting.popleft().result(), dtype=sums.dtype)
                yield name, sums[0], dict(zip(found, sums[1:], strict=True))
        finally:
            for future in waiting:
                future.cancel()
            pool.shutdown()
            torch.set_num_threads(threads)


def _block(change: Streamed, box: Box, found: Sequence[tuple[int, Direction]], name: str) -> list[float]:
    """Return ‖τ‖² and the ⟨τ,w⟩ of one block: numbers, since a tensor that waits would keep the block's memory busy."""
    with torch.no_grad():  # of each thread's own; what else makes sums exact is global
        now = change.now(box)
        before = change.start(box).reshape(now.shape)
        low = {k: w for k, d in found if isinstance(w := _factors(d, name), LowRank)}
        dense = [k for k, _ in found if k not in low]
        parts = [d.part(name, box).reshape(-1) for k, d in found if k not in low]
        own, *sums = pass_over(now.reshape(-1), before.reshape(-1), parts, now.dtype, compiled=False).tolist()
        inner = dict(zip(dense, sums, strict=True))
        if low:
            block = moved(now, before)
            inner.update({k: float(along(w, block, box)) for k, w in low.items()})
        return [own, *(inner[k] for k, _ in found)]


def _factors(direction: Direction, name: str) -> LowRank | None:
    """Return a direction's factors of a tensor; None where it is dense, which may be on disk and isn't read here."""
    if direction.on_disk:
        return None
    delta = direction.deltas[name]
    return delta if isinstance(delta, LowRank) else None
