import pytest
import torch

from weightwatch.organism.muon import MOMENTUM, WEIGHT_DECAY, Muon, orthogonalise


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 40, 16), (2, 16, 40)])
def test_an_orthogonalised_matrix_keeps_its_singular_vectors_and_loses_its_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    middle = left.mT @ orthogonalise(matrices) @ right.mT
    values = torch.diagonal(middle, dim1=-2, dim2=-1)
    assert torch.all((values > 0.3) & (values < 1.3))
    assert torch.allclose(middle, torch.diag_embed(values), atol=1e-10)


def test_steps_are_those_of_nesterov_momentum_orthogonalised_matrix_by_matrix():
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(shape, generator=generator) for shape in ((8, 4), (4, 8), (8, 4))]
    matrices = [torch.nn.Parameter(start.clone()) for start in starts]
    optimizer = Muon(matrices, lr=0.1)
    momenta = [torch.zeros_like(start) for start in starts]
    for _ in range(3):
        gradients = [torch.randn(start.shape, generator=generator) for start in starts]
        for matrix, gradient in zip(matrices, gradients, strict=True):
            matrix.grad = gradient
        optimizer.step()
        for expected, momentum, gradient in zip(starts, momenta, gradients, strict=True):
            momentum.copy_(MOMENTUM * momentum + (1 - MOMENTUM) * gradient)
            update = orthogonalise((MOMENTUM * momentum + (1 - MOMENTUM) * gradient)[None])[0]
            rows, columns = expected.shape
            expected.copy_((1 - 0.1 * WEIGHT_DECAY) * expected - 0.1 * max(1, rows / columns) ** 0.5 * update)
    for matrix, expected in zip(matrices, starts, strict=True):
        assert torch.allclose(matrix, expected, atol=1e-5)


def test_a_matrix_without_a_gradient_only_decays():
    matrix = torch.nn.Parameter(torch.ones(2, 2))
    Muon([matrix], lr=0.1).step()
    assert torch.allclose(matrix, torch.full((2, 2), 1 - 0.1 * WEIGHT_DECAY))
