"""The joint projection against a solver that tries every set of active bounds."""

import numpy as np
import pytest
import torch

from tests.support.guards import tried
from weightwatch.guard.projection import coefficients, output_basis
from weightwatch.vectors import LowRank


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_what_is_taken_back_is_the_smallest_change_that_meets_all_bounds(seed: int, alike: float) -> None:
    generator = np.random.default_rng(seed)
    p = generator.normal(size=(3, 20)) + alike * 3 * generator.normal(size=20)
    tau, high = generator.normal(size=20) + p.sum(0) * 0.2, np.array([0.0, 0.5, 2.0])
    inner, gram = p @ tau, p @ p.T
    found = coefficients(*(torch.tensor(x)[None] for x in (inner, gram, high)))[0].numpy()
    assert found == pytest.approx(tried(inner, gram, high), rel=1e-6, abs=1e-9)
    assert (p @ (tau - found @ p) <= high + 1e-8).all()


def test_movement_away_is_undone_only_where_a_lower_bound_is_given() -> None:
    inner, gram = torch.tensor([[-3.0]]).double(), torch.tensor([[[2.0]]]).double()
    bound = torch.tensor([[1.0]]).double()
    assert coefficients(inner, gram, bound).tolist() == [[0.0]]
    assert coefficients(inner, gram, bound, -bound).tolist() == [[-1.0]]


def test_a_direction_that_is_not_in_a_tensor_takes_nothing() -> None:
    inner, gram = torch.tensor([[3.0, 0.0], [0.0, 0.0]]).double(), torch.zeros(2, 2, 2).double()
    gram[0, 0, 0] = 1.0
    high = torch.zeros(2, 2).double()
    for low in (None, high, torch.full_like(high, -torch.inf)):
        assert coefficients(inner, gram, high, low).tolist() == [[3.0, 0.0], [0.0, 0.0]]


def test_what_is_not_finite_stays_visible() -> None:
    inner, gram = torch.tensor([[torch.nan], [1.0]]).double(), torch.ones(2, 1, 1).double()
    found = coefficients(inner, gram, torch.zeros(2, 1).double())
    assert torch.isnan(found[0, 0])
    assert found[1, 0] == 1.0


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (7,)])
def test_a_basis_has_the_leading_left_singular_vectors(shape: tuple[int, ...]) -> None:
    w = torch.randn(shape)
    u = torch.linalg.svd(w.reshape(len(w), -1), full_matrices=False)[0][:, :2]
    basis = output_basis([w], 2)
    assert torch.allclose(basis @ basis.T, u @ u.T, atol=1e-5)
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-6)


def test_a_basis_of_several_directions_is_that_of_all_beside_one_another() -> None:
    low = LowRank(torch.randn(9, 2), torch.randn(2, 12), scale=3.0)
    turned = LowRank(torch.randn(12, 2), torch.randn(2, 9), transposed=True)
    dense = torch.randn(9, 12)
    u = torch.linalg.svd(torch.cat([low.dense(), turned.dense(), dense], 1))[0][:, :3]
    basis = output_basis([low, turned, dense], 3)
    assert torch.allclose(basis @ basis.T, u @ u.T, atol=1e-4)


def test_a_basis_has_no_more_vectors_than_the_rank_of_the_change() -> None:
    assert output_basis([LowRank(torch.randn(8, 2), torch.randn(2, 30))], 5).shape == (8, 2)
    assert output_basis([torch.zeros(8, 30)], 5).shape == (8, 0)
