import pytest
import torch

from weightwatch.vectors.precision import BLOCK, dot, exact


def test_a_long_dense_tensor_is_summed_in_blocks_without_drift() -> None:
    long = torch.full((3 * BLOCK + 7,), 0.1)
    assert float(dot(long, long)) == pytest.approx(float(long.double().square().sum()), rel=1e-6)


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


def test_a_product_with_itself_is_the_product_with_a_copy_to_the_last_bit() -> None:
    values = torch.randn(BLOCK + 7, generator=torch.manual_seed(0)).bfloat16()
    assert torch.equal(dot(values, values), dot(values, values.clone()))
