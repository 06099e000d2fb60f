"""A few values of each tensor show that it has changed, and how."""

import pytest
import torch

from tests.support.models import tiny_llama
from weightwatch.update.model_view import ModelView
from weightwatch.update.samples import Digest, Samples, of_model, of_source, value
from weightwatch.update.sharding.local import LocalTensor, Piece, whole_tensor
from weightwatch.update.sharding.ranks import ALONE


def normal(*shape: int, seed: int = 0, size: float = 0.02) -> torch.Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of(weight: torch.Tensor) -> Samples:
    return of_model({str(i): whole_tensor(part, False) for i, part in enumerate(weight.split(32))})


def in_parts(weight: torch.Tensor) -> LocalTensor:
    """Return a tensor in two local pieces."""
    rows, columns = weight.shape
    first, second = slice(0, rows // 2), slice(rows // 2, rows)
    pieces = tuple(Piece((half, slice(0, columns)), weight[half]) for half in (first, second))
    return LocalTensor((rows, columns), weight.dtype, False, True, pieces)


def test_equal_weights_have_equal_samples_and_other_weights_others() -> None:
    model, twin, other = (ModelView(tiny_llama(seed)).parameters for seed in (0, 0, 3))
    assert of_model(model).changed(of_model(twin)) == {}
    norms = {name for name in model if "norm" in name}  # all ones
    assert of_model(model).changed(of_model(other)) == dict.fromkeys(model.keys() - norms, True)


def test_samples_are_copies() -> None:
    weight = normal(64, 32)
    before = of(weight)
    weight.add_(1.0)
    assert before.changed(of(weight)) == {"0": True, "1": True}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_an_adapter_and_taking_it_out_again_is_told_from_merging_it(dtype: torch.dtype) -> None:
    """A merge moves small weights by many units of their rounding error; going there and back does not."""
    weight = normal(1024, 64).to(dtype)
    start = of(weight)
    for cycle in range(50):
        product = normal(1024, 2, seed=cycle + 1) @ normal(2, 64, seed=cycle + 99)
        weight += product.to(dtype)
        weight -= product.to(dtype)
    drifted = start.changed(of(weight))
    assert not any(drifted.values())
    assert drifted or dtype == torch.float32
    weight += product.to(dtype)
    assert any(start.changed(of(weight)).values())


def test_any_change_of_integers_is_more_than_rounding() -> None:
    before, now = (Samples({"packed": [torch.tensor([1, number], dtype=torch.uint8)]}) for number in (2, 3))
    assert before.changed(now) == {"packed": True}


def test_a_cast_is_rounding_and_what_only_one_side_has_is_skipped() -> None:
    weight = normal(32, 32)
    assert not any(of(weight).changed(of(weight.bfloat16())).values())
    assert Samples({"a": [weight[0]]}).changed(Samples({"b": [weight[1]]})) == {}
    assert of_model({"a": whole_tensor(torch.empty(4, 4, device="meta"), False)}).changed(Samples({})) == {}


def test_the_digest_depends_on_the_values_and_not_on_how_a_tensor_is_sharded() -> None:
    weight = normal(64, 32)
    kinds = (whole_tensor(weight, False), in_parts(weight), whole_tensor(weight + 1e-6, False))
    whole, parts, other = (Digest.of({"w": local}, value({"w": local}), ALONE) for local in kinds)
    assert whole == parts
    assert (whole.tensors, whole.values != other.values) == (other.tensors, True)
    local = whole_tensor(weight.bfloat16(), False)
    assert Digest.of({"w": local}, value({"w": local}), ALONE).tensors != whole.tensors


def test_a_source_is_sampled_where_the_model_is() -> None:
    weight = normal(64, 32)
    for local in (whole_tensor(weight, False), in_parts(weight)):
        assert of_source({"w": local}, lambda _, box: weight[box]).changed(of_model({"w": local})) == {}
        assert of_source({"w": local}, lambda _, box: weight[box] + 1).changed(of_model({"w": local})) == {"w": True}


def test_scalars_and_empty_tensors_are_sampled() -> None:
    for tensor in (torch.tensor(2.0), torch.empty(0, 4), torch.ones(3)):
        local = whole_tensor(tensor, False)
        assert of_model({"w": local}).changed(of_model({"w": local})) == {}
