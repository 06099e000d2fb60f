"""The sums of fully trained tensors: blocks of θ_t − θ₀ in fp32, added in fp64.

Here P(w) = w, so the caller sets ‖P(w)‖² to ‖w‖². These functions return zeros for it.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from weightwatch.measure.kernel import TINY, pass_over, pass_over_tiny
from weightwatch.measure.low_rank import Figures, Found
from weightwatch.update.change import Difference
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide
from weightwatch.vectors.weights.difference import moved
from weightwatch.vectors.weights.reader import Box

_PART = 1 << 23  # elements of θ₀ read from disk at a time: as many as one call of the compiled loop takes
_COPIED = 1 << 24  # elements of θ₀ copied to another device at a time
_BLOCK = 1 << 19  # elements of the change multiplied with a direction's factors at a time


def each(changes: Mapping[str, Difference], found: Mapping[str, Found]) -> Iterator[tuple[str, Figures]]:
    """Measure the local parts of fully trained tensors one after the other.

    Of a θ₀ on disk, the next part is read while one is measured: the copy from the system's cache takes about as long
    as a compiled pass.

    Args:
        changes: Their changes, by name.
        found: The directions of each tensor.
    """
    parts = {name: list(_parts(change, _size(change, found[name]))) for name, change in changes.items()}
    reads = ((partial(change.start, box), change.stored) for name, change in changes.items() for box, _ in parts[name])
    with closing(_read_ahead(reads)) as starts:
        for name, change in changes.items():
            yield name, _full(change, found[name], parts[name], starts)


def _full(change: Difference, found: Found, blocks: Sequence[tuple[Box, Tensor]], starts: Iterator[Tensor]) -> Figures:
    """Measure a tensor, given its blocks and, in the same order, their starts."""
    local, device = change.local, _device(change)
    low = {k: w.to(device) for k, w in found if isinstance(w, LowRank)}
    dense = {k: w for k, w in found if isinstance(w, Tensor)}
    inner = {k: [wide(torch.zeros((), dtype=torch.float32, device=device))] for k in low}
    sums: list[Tensor] = []
    for (box, now), start in zip(blocks, starts, strict=False):  # the starts go on with the next tensor's
        before = start.to(device).reshape(now.shape)
        parts = [w.reshape(local.shape)[box].to(device).reshape(-1) for w in dense.values()]
        sums.append(wide(pass_over(now.reshape(-1), before.reshape(-1), parts, local.dtype)))
        if low:
            block = moved(now, before, local.dtype)
            for k, w in low.items():
                inner[k].append(along(w, block, box))
    sums = sums or [wide(torch.zeros(1 + len(dense), dtype=torch.float32, device=device))]
    own, *others = (torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]).unbind()
    total = {**dict(zip(dense, others, strict=True)), **{k: torch.stack(parts).sum() for k, parts in inner.items()}}
    return own, [total[k] for k, _ in found], [torch.zeros_like(own)] * len(found)


def _read_ahead(reads: Iterable[tuple[Callable[[], Tensor], bool]]) -> Generator[Tensor, None, None]:
    """Yield what each of the reads returns. Those from disk are done by a thread, one ahead of the caller."""
    with ThreadPoolExecutor(1) as pool:
        ahead: deque[Callable[[], Tensor]] = deque()
        for read, stored in reads:
            ahead.append(pool.submit(read).result if stored else read)
            if len(ahead) > 1:
                yield ahead.popleft()()
        while ahead:
            yield ahead.popleft()()


def tiny(changes: Mapping[str, Difference], found: Mapping[str, Found]) -> Iterator[list[str]]:
    """Yield groups of small fully trained tensors, by name, that ``together`` measures in one pass."""
    groups: dict[object, list[str]] = {}
    for name, change in changes.items():
        (piece,) = change.local.pieces if len(change.local.pieces) == 1 else (None,)
        if piece is None or not 0 < piece.values.numel() <= TINY:
            continue
        if all(isinstance(w, Tensor) for _, w in found[name]):
            kind = change.local.dtype, piece.values.device, tuple(k for k, _ in found[name])
            groups.setdefault(kind, []).append(name)
    yield from groups.values()


def together(changes: Sequence[Difference], found: Sequence[Found]) -> Figures:
    """Measure one of the groups of tensors that ``tiny`` yields.

    Args:
        changes: Their changes.
        found: The directions of each tensor: the same ones for all.
    """
    pieces = [change.local.pieces[0] for change in changes]
    device = pieces[0].values.device
    lines = [
        [w.reshape(change.local.shape)[piece.box].to(device).reshape(-1) for _, w in ws]
        for change, piece, ws in zip(changes, pieces, found, strict=True)
    ]
    before = [change.start(piece.box).to(device).reshape(-1) for change, piece in zip(changes, pieces, strict=True)]
    now = [piece.values.reshape(-1) for piece in pieces]
    own, *inner = wide(pass_over_tiny(now, before, lines, changes[0].local.dtype)).unbind()
    return own, inner, [torch.zeros_like(own)] * len(inner)


def _device(change: Difference) -> torch.device:
    """Return the device of a tensor's local part."""
    return change.local.pieces[0].values.device if change.local.pieces else torch.device("cpu")


def _size(change: Difference, found: Found) -> int | None:
    """Return how many elements are measured at a time; None for all of them."""
    if any(isinstance(w, LowRank) for _, w in found):
        return _BLOCK
    return _COPIED if _device(change).type != "cpu" else _PART if change.stored else None


def _parts(change: Difference, size: int | None) -> Iterator[tuple[Box, Tensor]]:
    """Yield the local part of a tensor in whole rows of about ``size`` elements; None for all of it at once."""
    for piece in change.local.pieces:
        values, box = piece.values, piece.box
        if not box or size is None or values.numel() <= size:
            yield box, values
            continue
        step = max(1, size * len(values) // values.numel())
        for first in range(0, len(values), step):
            last = min(len(values), first + step)
            yield (slice(box[0].start + first, box[0].start + last), *box[1:]), values[first:last]


def along(w: LowRank, block: Tensor, box: Box) -> Tensor:
    """Return ⟨τ,w⟩ = Σ (Lᵀ τ) ∘ R over one block of a full tensor's change, for a direction in factors.

    Args:
        w: The direction, on the block's device.
        block: The change in fp32.
        box: The position of the block in the whole tensor.
    """
    left, right = (w.right.T, w.left.T) if w.transposed else (w.left, w.right)
    left, right = left[box[0]].to(block), right[:, box[1]].to(block)
    return wide((left.T @ block) * right).sum()
