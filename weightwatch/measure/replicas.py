"""Comparing the replicas of a tensor on several processes, by three columns in the table of a measurement."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from weightwatch.update.change import Change, Difference, Rescaled
from weightwatch.update.sharding.ranks import Floats, Ranks
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide

COLUMNS = 3
"""Number of columns that replicas are compared by."""

_SAMPLED = 1024  # values compared per tensor
_TOLERANCE = 1e-3  # relative difference allowed: kernels may add in another order


def sample_replicas(update: Mapping[str, Change], ranks: Ranks) -> Floats:
    """Return s, s² and Σ|x| of each replicated tensor, where s = Σ x is over a sample of its values.

    Args:
        update: The change of each of the T trained tensors.
        ranks: The processes that measure together.

    Returns:
        Shape (T, 3); zeros for sharded tensors, and with one process.
    """
    table = np.zeros((len(update), COLUMNS))
    if ranks.count == 1:
        return table
    samples: dict[int, Tensor] = {}
    for line, change in enumerate(update.values()):
        match change:
            case LowRank():
                local = change.left
            case Rescaled():
                local = change.factors.left
            case Difference(local=whole) if not whole.sharded:
                local = whole.pieces[0].values
            case _:
                continue
        flat = local.reshape(-1)[:: max(1, local.numel() // _SAMPLED)].float()
        samples[line] = wide(torch.stack([flat.sum(), flat.abs().sum()]))
    for line, found in samples.items():  # read at the end, so that the device is synchronised once
        total, size = found.tolist()
        table[line] = total, total**2, size
    return table


def require_equal_replicas(names: Iterable[str], means: Floats) -> None:
    """Make sure that all processes have equal replicas of each tensor.

    The variance of s over the processes is the mean of s² minus the square of the mean of s.

    Args:
        names: Names of the T tensors.
        means: The samples, averaged over the processes, shape (T, 3).

    Raises:
        WeightWatchError: The replicas of a tensor differ.
    """
    spread = np.sqrt(np.maximum(means[:, 1] - means[:, 0] ** 2, 0.0))
    for name, differs in zip(names, spread > _TOLERANCE * means[:, 2], strict=True):
        if differs:
            raise WeightWatchError(
                f"The processes disagree about {name}, of which each should have the same copy. Make sure that the "
                "model is wrapped for data parallelism, and that all processes load the same weights."
            )
