from dataclasses import replace

import pytest
import torch
from torch import Tensor

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank, join, refactored, square, summed, times, total


def factors(seed: int, rank: int, *, transposed: bool = False) -> LowRank:
    """Return a random change of a (10, 6) weight."""
    generator = torch.Generator().manual_seed(seed)
    out, into = (6, 10) if transposed else (10, 6)
    return LowRank(
        torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator), transposed
    )


CHANGES = {
    "factors": factors(1, 3),
    "factors of the transpose": factors(2, 2, transposed=True),
    "bf16 factors": factors(3, 4).to("cpu", torch.bfloat16),
    "factors with a scale": replace(factors(7, 3), scale=0.5),
    "dense": torch.randn(10, 6, generator=torch.Generator().manual_seed(4)),
    "dense bf16": torch.randn(10, 6, generator=torch.Generator().manual_seed(5)).bfloat16(),
    "dense, not contiguous": torch.randn(6, 10, generator=torch.Generator().manual_seed(6)).T,
}


def multiplied_out(change: LowRank | Tensor) -> Tensor:
    if isinstance(change, Tensor):
        return change.double()
    product = change.scale * change.left.double() @ change.right.double()
    return product.T if change.transposed else product


@pytest.mark.parametrize("a", CHANGES)
def test_total_is_the_sum_of_the_elements(a: str) -> None:
    assert total(CHANGES[a]) == pytest.approx(float(multiplied_out(CHANGES[a]).sum()), rel=1e-6)


@pytest.mark.parametrize("a", CHANGES)
def test_square_is_the_squared_frobenius_norm(a: str) -> None:
    assert square(CHANGES[a]) == pytest.approx(float(multiplied_out(CHANGES[a]).square().sum()), rel=1e-6)


@pytest.mark.parametrize("a", [name for name, change in CHANGES.items() if isinstance(change, LowRank)])
def test_factors_know_the_shape_of_the_weight_they_change(a: str) -> None:
    change = CHANGES[a]
    assert change.shape == (10, 6)
    assert change.dense().shape == (10, 6)
    assert torch.allclose(change.dense().double(), multiplied_out(change), atol=1e-5)


@pytest.mark.parametrize("a", [name for name, change in CHANGES.items() if isinstance(change, LowRank)])
def test_a_part_of_factors_is_that_of_the_product(a: str) -> None:
    box = slice(2, 7), slice(1, 4)
    assert torch.allclose(CHANGES[a].part(box), CHANGES[a].dense()[box], atol=1e-6)


@pytest.mark.parametrize("a", CHANGES)
def test_a_multiple_is_that_of_the_multiplied_out_change(a: str) -> None:
    change = replace(CHANGES[a], scale=1.0) if isinstance(CHANGES[a], LowRank) else CHANGES[a]
    assert torch.allclose(multiplied_out(times(change, -2.5)), -2.5 * multiplied_out(change), rtol=1e-6)


def test_a_join_of_two_sides_is_their_difference_however_near_they_start() -> None:
    first = factors(1, 3)
    near = LowRank(first.left + 1e-4 * factors(2, 3).left, first.right + 1e-4 * factors(2, 3).right)
    for other in (factors(4, 5), near):
        found = join("w", [(1.0, first), (-1.0, other)])
        assert torch.allclose(
            multiplied_out(found), multiplied_out(first) - multiplied_out(other), rtol=1e-4, atol=1e-8
        )
    turned = LowRank(first.right.T, first.left.T)
    with pytest.raises(WeightWatchError, match=r"differ in the shape of w: \(6, 10\) and \(10, 6\)"):
        join("w", [(1.0, first), (-1.0, turned)])


def test_a_sum_of_factors_has_the_least_rank() -> None:
    a, b = factors(1, 3), factors(2, 2)
    found = refactored([(2.0, a), (-1.0, b), (1.0, a)])
    assert found is not None
    assert found.rank == 5
    assert torch.allclose(multiplied_out(found), 3 * multiplied_out(a) - multiplied_out(b), atol=1e-5)
    assert refactored([(1.0, a), (-1.0, a)]) is None


def test_a_sum_of_a_lower_rank_is_the_nearest_one() -> None:
    terms = [(2.0, factors(1, 3)), (-1.0, factors(2, 2))]
    whole = multiplied_out(factors(1, 3)).double() * 2 - multiplied_out(factors(2, 2)).double()
    u, values, v = torch.linalg.svd(whole, full_matrices=False)
    found = refactored(terms, rank=2)
    assert found is not None
    assert found.rank == 2
    nearest = (u[:, :2] * values[:2]) @ v[:2]
    assert torch.allclose(multiplied_out(found).double(), nearest, atol=1e-5)


def test_sums_by_name_leave_out_what_cancels_and_take_missing_tensors_for_zero() -> None:
    a, b = {"x": factors(1, 3), "y": torch.ones(2)}, {"x": factors(1, 3)}
    found = summed([a, b], lambda name: [1.0, -1.0])
    assert list(found) == ["y"]
    assert torch.equal(found["y"], torch.ones(2))
