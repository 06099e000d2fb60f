import pytest
import torch

from weightwatch.guard.weight import oriented
from weightwatch.vectors.low_rank import LowRank

GENERATOR = torch.Generator().manual_seed(0)
LEFT, RIGHT = torch.randn(4, 2, generator=GENERATOR), torch.randn(2, 3, generator=GENERATOR)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_direction_is_turned_alike_in_factors_and_dense(transposed: bool, turned: bool) -> None:
    low = LowRank(LEFT, RIGHT, transposed, scale=0.5)
    found = oriented(low, turned)
    assert isinstance(found, LowRank)
    dense = oriented(low.dense(), turned)
    assert isinstance(dense, torch.Tensor)
    assert torch.allclose(found.left @ found.right, dense)
    assert torch.equal(dense, low.dense().T if turned else low.dense())
