"""Shapes and parts of changes; tests/measure measures them."""

import torch

from weightwatch.update.change import Difference, Rescaled, Rescaling
from weightwatch.update.sharding.local import whole_tensor
from weightwatch.vectors import LowRank


def test_a_rescaled_weight_has_the_shape_that_the_model_gives_it() -> None:
    factors = LowRank(torch.ones(5, 2), torch.ones(2, 3))

    def rescaling() -> Rescaling:
        return Rescaling(torch.ones(5), torch.ones(5, 2), torch.ones(5, 3))

    assert Rescaled(factors, rescaling).shape == (5, 3)
    assert Rescaled(factors, rescaling, transposed=True).shape == (3, 5)


def test_other_shards_of_a_difference_keep_its_start() -> None:
    start = torch.zeros(4, 2)
    change = Difference(whole_tensor(torch.ones(4, 2), True), start.__getitem__)
    part = change.of(change.local.with_pieces(((slice(1, 2), slice(0, 2)), torch.ones(1, 2))))
    assert part.shape == change.shape == (4, 2)
    assert part.start is change.start
    assert [piece.box for piece in part.local.pieces] == [(slice(1, 2), slice(0, 2))]
