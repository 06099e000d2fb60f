from dataclasses import replace

import pytest
import torch
from torch import Tensor

from weightwatch.vectors.low_rank import LowRank, square
from weightwatch.vectors.precision import BLOCK, blocks, exact


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
def test_square_is_the_squared_frobenius_norm(a: str) -> None:
    assert square(CHANGES[a]) == pytest.approx(float(multiplied_out(CHANGES[a]).square().sum()), rel=1e-6)


@pytest.mark.parametrize("a", [name for name, change in CHANGES.items() if isinstance(change, LowRank)])
def test_factors_know_the_shape_of_the_weight_they_change(a: str) -> None:
    change = CHANGES[a]
    assert change.shape == (10, 6)
    assert change.dense().shape == (10, 6)
    assert torch.allclose(change.dense().double(), multiplied_out(change), atol=1e-5)


def test_a_long_dense_tensor_is_summed_in_blocks_without_drift() -> None:
    long = torch.full((3 * BLOCK + 7,), 0.1)
    assert [len(block) for block in blocks(long)] == [BLOCK, BLOCK, BLOCK, 7]
    assert square(long) == pytest.approx(float(long.double().square().sum()), rel=1e-6)


def test_precision_switches_are_as_before_after_an_error() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with exact():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert not torch.is_grad_enabled()
        with pytest.raises(KeyError), exact():
            {}["missing"]
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.is_grad_enabled()
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("a", [name for name, change in CHANGES.items() if isinstance(change, LowRank)])
def test_a_part_of_factors_is_that_of_the_product(a: str) -> None:
    box = slice(2, 7), slice(1, 4)
    assert torch.allclose(CHANGES[a].part(box), CHANGES[a].dense()[box], atol=1e-6)
