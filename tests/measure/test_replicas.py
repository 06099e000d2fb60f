"""Replicas of a tensor on several processes, compared by the sums of all tables."""

import numpy as np
import pytest
import torch
from torch import Tensor

from weightwatch.measure.replicas import require_equal_replicas, sample_replicas
from weightwatch.update.change import Change, Difference
from weightwatch.update.sharding.local import LocalTensor, Piece, whole
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors import LowRank, WeightWatchError

WEIGHT = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
FACTORS = LowRank(WEIGHT[:, :2].contiguous(), WEIGHT[:2])


def trained(values: Tensor, sharded: bool = False) -> Difference:
    local = LocalTensor(tuple(values.shape), values.dtype, True, sharded, (Piece(whole(values.shape), values),))
    return Difference(local, torch.zeros_like(values).__getitem__)


def compared(*of: dict[str, Change]) -> None:
    """Compare what several processes have, as one of them does."""
    tables = [sample_replicas(update, Ranks(rank, len(of))) for rank, update in enumerate(of)]
    require_equal_replicas(of[0], sum(tables) / len(of))


def test_a_sample_is_the_sum_its_square_and_the_sum_of_sizes() -> None:
    values = torch.tensor([[1.0, -2.0], [3.0, -5.0]])
    (line,) = sample_replicas({"w": trained(values)}, Ranks(0, 2))
    assert line.tolist() == [-3.0, 9.0, 11.0]
    (line,) = sample_replicas({"w": LowRank(values, torch.ones(2, 3))}, Ranks(0, 2))
    assert line.tolist() == [-3.0, 9.0, 11.0]


def test_sharded_tensors_and_a_process_alone_have_nothing_to_compare() -> None:
    assert not sample_replicas({"w": trained(WEIGHT, sharded=True)}, Ranks(0, 2)).any()
    assert not sample_replicas({"w": trained(WEIGHT)}, ALONE).any()


def test_equal_replicas_pass_up_to_the_order_of_additions() -> None:
    almost = WEIGHT * (1 + 1e-6 * torch.randn(WEIGHT.shape))
    compared(*[{"w": trained(values), "a": FACTORS} for values in (WEIGHT, almost, WEIGHT)])
    compared(*[{"zero": trained(torch.zeros(3))}] * 2)


@pytest.mark.parametrize("which", ["w", "a"])
def test_replicas_that_differ_are_named(which: str) -> None:
    other: dict[str, Change] = {"w": trained(WEIGHT), "a": FACTORS}
    moved = WEIGHT + 0.1
    other[which] = trained(moved) if which == "w" else LowRank(moved[:, :2].contiguous(), WEIGHT[:2])
    with pytest.raises(WeightWatchError, match=f"The processes disagree about {which}, of which each should have"):
        compared({"w": trained(WEIGHT), "a": FACTORS}, other)


def test_replicas_with_nan_are_left_to_the_sums() -> None:
    means = np.array([[np.nan, np.nan, np.nan]])
    require_equal_replicas(["w"], means)
