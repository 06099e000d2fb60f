"""Inner products between many directions, tensor by tensor, in fp64."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from weightwatch.vectors.direction import Direction
from weightwatch.vectors.low_rank import LowRank, require_one_shape
from weightwatch.vectors.precision import BLOCK, exact, wide
from weightwatch.vectors.weights.reader import boxes


def grams(directions: Sequence[Direction]) -> Iterator[tuple[str, Tensor]]:
    """Yield the inner products between all directions over each tensor, with its name: shape (n, n), fp64.

    Factors are never multiplied out; dense tensors are read once, a block at a time.

    Args:
        directions: The directions. A tensor that one of them lacks counts as zero.

    Raises:
        WeightWatchError: They differ in the shape of a tensor.
    """
    for name in dict.fromkeys(name for direction in directions for name in direction.deltas):
        having = {i: direction for i, direction in enumerate(directions) if name in direction.deltas}
        with exact():
            part = _gram(name, having)
        found = torch.zeros(len(directions), len(directions), dtype=torch.float64, device="cpu")
        where = torch.tensor(list(having), dtype=torch.long, device="cpu")
        found[where[:, None], where] = part
        yield name, found


def _gram(name: str, having: dict[int, Direction]) -> Tensor:
    """Return the inner products between the directions that have a tensor, in their order."""
    directions = list(having.values())
    require_one_shape(name, [direction.shape(name) for direction in directions], [each.name for each in directions])
    deltas = [None if direction.on_disk else direction.deltas[name] for direction in directions]
    thin = {i: tuple(wide(f).cpu() for f in d.oriented) for i, d in enumerate(deltas) if isinstance(d, LowRank)}
    dense = [i for i in range(len(directions)) if i not in thin]
    found = torch.zeros(len(directions), len(directions), dtype=torch.float64, device="cpu")
    for i, (rows, columns) in thin.items():
        for j, (others, across) in thin.items():
            found[i, j] = ((rows.T @ others) * (columns @ across.T)).sum()
    for box in boxes(directions[0].shape(name), BLOCK) if dense else ():
        parts = [wide(directions[i].part(name, box)).cpu() for i in dense]
        flat = torch.stack([part.reshape(-1) for part in parts])
        where = torch.tensor(dense, dtype=torch.long, device="cpu")
        found[where[:, None], where] += flat @ flat.T
        for i, (rows, columns) in thin.items():
            for j, part in zip(dense, parts, strict=True):
                product = (rows[box[0]] * (part @ columns[:, box[1]].T)).sum()
                found[i, j] += product
                found[j, i] += product
    return found
