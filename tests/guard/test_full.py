"""A weight that is trained itself: its sums, and what is subtracted; tests/guard/test_parts.py guards whole models."""

import torch
from torch import nn

from weightwatch.guard.full import Full
from weightwatch.guard.trained import Trained
from weightwatch.vectors.low_rank import LowRank

W = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
COLUMN, ROW = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, -1.0]])


def full(parameter: nn.Parameter, start: torch.Tensor) -> Full:
    return Full("weight", Trained(parameter), start.__getitem__, [0, 2], [W, LowRank(COLUMN, ROW)])


def test_sums_are_inner_products_with_the_directions_and_between_them() -> None:
    theta = torch.tensor([[3.0, 1.0], [4.0, 1.0]])
    made = full(nn.Parameter(theta), theta)
    along, between = made.sums([theta])
    assert along.tolist() == [[5.0, 11.0]]
    assert between.tolist() == [[[5.0, -5.0], [-5.0, 20.0]]]
    assert made.started.tolist() == [[5.0, 11.0]]


def test_the_multiples_are_subtracted_and_the_squared_norm_is_returned() -> None:
    parameter = nn.Parameter(torch.zeros(2, 2))
    c = torch.tensor([[2.0, 0.5]]).double()
    square = full(parameter, torch.zeros(2, 2)).subtract([parameter.detach()], c)
    want = 2 * W + 0.5 * COLUMN @ ROW
    assert torch.equal(parameter.detach(), -want)
    assert float(square) == float(want.square().sum())
