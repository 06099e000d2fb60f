"""What processes do together, as far as one process shows it: tests/distributed has several."""

import numpy as np
import pytest
import torch

from weightwatch.update.sharding.local import whole_tensor
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors import WeightWatchError


def test_without_a_process_group_this_process_is_alone() -> None:
    assert Ranks.world() == ALONE == Ranks(0, 1)
    assert ALONE.main
    assert not Ranks(1, 2).main


def test_a_process_group_is_the_world(group: None) -> None:
    assert Ranks.world() == Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def test_alone_each_method_returns_its_input() -> None:
    values = np.array([1.0, np.nan])
    assert ALONE.add(values) is values
    assert ALONE.all(True)
    assert ALONE.agreed(lambda: 3) == ALONE.from_main(lambda: 3) == 3
    assert ALONE.each("x") == ["x"]


def test_alone_an_error_is_raised_as_it_is() -> None:
    fault = WeightWatchError("no θ₀")
    with pytest.raises(WeightWatchError, match="no θ₀"):
        ALONE.add(np.zeros(2), fault)


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_shares_of_all_processes_are_the_tensor_once(rows: int, count: int) -> None:
    values = torch.arange(2.0 * rows).view(rows, 2)
    seen, total = torch.zeros(rows, 2), torch.zeros(rows, 2)
    for rank in range(count):
        for piece in Ranks(rank, count).share(whole_tensor(values, True)).pieces:
            seen[piece.box] += 1
            total[piece.box] += piece.values
    assert bool((seen == 1).all())
    assert torch.equal(total, values)


def test_a_scalar_is_measured_by_the_main_process() -> None:
    scalar = whole_tensor(torch.tensor(2.0), True)
    assert [len(Ranks(rank, 3).share(scalar).pieces) for rank in range(3)] == [1, 0, 0]
