import pytest
import torch

from tests import oracle as slow
from tests.support.models import dense, low_rank, tiny_gpt2
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.inner_products import grams


def test_each_tensor_gives_the_inner_products_of_the_multiplied_out_directions() -> None:
    directions = [
        low_rank(tiny_gpt2(), 1),
        dense(tiny_gpt2(), 2),
        low_rank(tiny_gpt2(), 3).without(["transformer.wte.weight"]),
    ]
    every = [slow.dense(direction) for direction in directions]
    found = dict(grams(directions))
    assert found.keys() == set().union(*every)
    for name, products in found.items():
        flat = [tensors[name].double().flatten() if name in tensors else None for tensors in every]
        wanted = [[0.0 if a is None or b is None else float(a @ b) for a in flat] for b in flat]
        assert torch.allclose(products, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_two_shapes_of_one_tensor_are_refused_by_the_names_of_the_directions() -> None:
    narrow, wide = dense(torch.nn.Linear(2, 3), 1, name="narrow"), dense(torch.nn.Linear(4, 3), 1, name="wide")
    with pytest.raises(WeightWatchError, match=r"shape of weight: \(3, 2\) in 'narrow', \(3, 4\) in 'wide'"):
        list(grams([narrow, wide]))
