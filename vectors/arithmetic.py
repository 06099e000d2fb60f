"""Sums, multiples, projections and inner products of directions and task vectors of one base.

Factors stay factors: a sum of low-rank changes is their concatenation, reduced to its true rank by QR and SVD in fp64.
A tensor that is dense in one operand is dense in the result.

Source: Ilharco et al., *Editing Models with Task Arithmetic*, arXiv 2212.04089; Fierro & Roger, *Steering Language
Models with Weight Arithmetic*, arXiv 2511.05408.
"""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from weightwatch.vectors.construct import weighted_sum
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.inner_products import grams
from weightwatch.vectors.low_rank import NULL, Delta, LowRank, refactored, summed
from weightwatch.vectors.provenance import descended, require_one_base
from weightwatch.vectors.storage import converted

# A remainder below a millionth of ‖w‖ is fp32 rounding.
_NOTHING = 1e-12


def add(*directions: Direction, weights: Sequence[float] | None = None, name: str | None = None) -> Direction:
    """Return Σ kᵢ wᵢ.

    A tensor that an operand lacks counts as zero.

    Args:
        directions: The operands wᵢ.
        weights: Their coefficients kᵢ. Default: 1 for each.
        name: The result's name. Default: the formula, ``evil+0.5*sycophancy``.

    Raises:
        WeightWatchError: There is no operand, or not one finite coefficient for each; the operands have different bases
            or shapes; or the sum is zero.

    Example:
        >>> a, b = (Direction.from_tensors({"w": torch.eye(2)[k]}, name="ab"[k]) for k in range(2))
        >>> add(a, b, weights=[3.0, 4.0])
        Direction('3*a+4*b', dense, 1 tensors, norm 5)
    """
    coefficients = [1.0] * len(directions) if weights is None else [float(weight) for weight in weights]
    if not directions or len(coefficients) != len(directions) or not all(map(isfinite, coefficients)):
        raise WeightWatchError(
            f"{len(directions)} directions can't be added with the coefficients {coefficients}: pass one finite number "
            "for each direction."
        )
    return _total("add", directions, coefficients, name)


def subtract(a: Direction, b: Direction, *, name: str | None = None) -> Direction:
    """Return a − b; see ``add``."""
    return add(a, b, weights=[1.0, -1.0], name=name)


def mean(*directions: Direction, name: str | None = None) -> Direction:
    """Return the mean of several builds of a direction, such as those of several seeds, to average out their noise.

    Args:
        directions: The builds.
        name: The result's name. Default: ``mean(…)`` of the names.

    Raises:
        WeightWatchError: See ``add``.
    """
    if not directions:
        raise WeightWatchError("The mean of no directions is undefined: pass at least one.")
    titles = list(dict.fromkeys(direction.name for direction in directions))
    shares = [1 / len(directions)] * len(directions)
    return _total("mean", directions, shares, name or f"mean({','.join(titles)})")


def scale(direction: Direction, coefficient: float, *, name: str | None = None) -> Direction:
    """Return k·w, of the same rank.

    Args:
        direction: w.
        coefficient: k, not zero.
        name: The result's name. Default: ``0.5*evil``.

    Raises:
        WeightWatchError: The coefficient is zero or not finite.
    """
    found = direction * coefficient
    return found if name is None else found.with_card(name=name)


def negate(direction: Direction, *, name: str | None = None) -> Direction:
    """Return −w: the direction towards the opposite behaviour."""
    return scale(direction, -1.0, name=name)


def orthogonalised(
    direction: Direction, *controls: Direction, per_tensor: bool = False, name: str | None = None
) -> Direction:
    """Return a direction without its components in the span of control directions.

    ``w − Σ cᵢ uᵢ`` where c solves ``⟨uᵢ, uⱼ⟩ cⱼ = ⟨uᵢ, w⟩``; the controls need not be orthogonal or independent.

    Args:
        direction: w.
        controls: The uᵢ.
        per_tensor: Solve for c in each tensor separately, so that every tensor of the result is orthogonal to those of
            the controls. Default: one c for the whole vector.
        name: The result's name. Default: ``evil-without(style,shuffled)``.

    Raises:
        WeightWatchError: There are no controls, they have another base, or the direction lies in their span.
    """
    if not controls:
        raise WeightWatchError(f"No controls to orthogonalise direction {direction.name!r} against: pass at least one.")
    name = name or f"{direction.name}-without({','.join(control.name for control in controls)})"
    operands = [direction, *controls]
    cards = [operand.card for operand in operands]
    require_one_base(cards)
    products = dict(grams(operands))
    whole = _left(torch.stack(list(products.values())).sum(0))
    weights = {key: _left(part) if per_tensor else whole for key, part in products.items()}
    rest = sum(float(weights[key] @ part @ weights[key]) for key, part in products.items())
    if rest < _NOTHING * direction.norm**2:
        raise WeightWatchError(f"Direction {direction.name!r} lies in the span of the controls. Leave out a control.")
    card = descended("orthogonalise", cards, [1.0] if per_tensor else whole.tolist(), name)
    return Direction(summed([operand.deltas for operand in operands], lambda key: weights[key].tolist()), card)


def compressed(
    direction: Direction, tolerance: float = NULL, *, rank: int | None = None, name: str | None = None
) -> Direction:
    """Return the same direction in factors of the least rank, or the nearest one of a lower rank.

    Args:
        direction: The direction. Its dense tensors stay as they are.
        tolerance: Singular values of a tensor below this share of the product of its factors' norms are dropped. The
            default drops fp64 rounding only; values below 1e-7 are fp32 rounding of the factors.
        rank: Largest rank of a tensor: only so many of its singular values are kept, the largest. The cosine with the
            whole direction is ‖result‖ / ‖direction‖. Default: no limit.
        name: The result's name. Default: the same.
    """
    deltas: dict[str, Delta] = {}
    for key, delta in direction.deltas.items():
        small = refactored([(1.0, delta)], tolerance, rank) if isinstance(delta, LowRank) else delta
        if small is not None:
            deltas[key] = small
    found = Direction(deltas, direction.card)
    return found if name is None else found.with_card(name=name)


def small(direction: Direction, rank: int) -> Direction:
    """Return the nearest direction of a rank, in bf16; its card says so, with its cosine with the whole one.

    Args:
        direction: The direction, in factors.
        rank: Largest rank of a tensor.

    Example:
        >>> found = small(Direction.load("evil"), 2)
        >>> found.card.hyperparameters["compressed"]
        {'rank': 2, 'cosine': 0.897}
    """
    nearest = compressed(direction, rank=rank)
    found = Direction(converted(nearest.deltas, torch.bfloat16, dense=False), nearest.card)
    kept = {"rank": rank, "cosine": round(cosine(found, direction), 4)}
    return found.with_card(hyperparameters={**direction.card.hyperparameters, "compressed": kept})


def inner(a: Direction, b: Direction) -> float:
    """Return the inner product ⟨a, b⟩ over all tensors that both have.

    Raises:
        WeightWatchError: They have different bases or shapes.
    """
    return float(gram([a, b])[0, 1])


def cosine(a: Direction, b: Direction) -> float:
    """Return ⟨a, b⟩ / (‖a‖ ‖b‖) over the whole vectors; a tensor that one lacks counts as zero.

    Raises:
        WeightWatchError: They have different bases or shapes.
    """
    return float(cosines([a, b])[0, 1])


def cosines(directions: Sequence[Direction]) -> Tensor:
    """Return the cosines between all directions and task vectors, shape (n, n), fp64.

    Every tensor is read once; if it is on disk, a block at a time.

    Raises:
        WeightWatchError: They have different bases or shapes.
    """
    products = gram(directions)
    norms = products.diagonal().sqrt()
    found = (products / torch.outer(norms, norms)).clamp(-1, 1)
    return found.fill_diagonal_(1.0)


def gram(directions: Sequence[Direction]) -> Tensor:
    """Return the inner products between all directions, shape (n, n), fp64.

    Raises:
        WeightWatchError: They have different bases or shapes.
    """
    require_one_base([direction.card for direction in directions])
    products = torch.zeros(len(directions), len(directions), dtype=torch.float64, device="cpu")
    for _, part in grams(directions):
        products += part
    return products


def _total(
    operation: str, directions: Sequence[Direction], coefficients: Sequence[float], name: str | None
) -> Direction:
    operands, cards = [direction.deltas for direction in directions], [direction.card for direction in directions]
    return Direction(*weighted_sum(operation, operands, cards, coefficients, name))


def _left(products: Tensor) -> Tensor:
    """Return the coefficients of w and of the controls in the remainder, from their inner products, w first."""
    norms = products.diagonal()[1:].sqrt()
    scales = torch.where(norms > 0, norms, 1.0)
    span = products[1:, 1:] / torch.outer(scales, scales)
    found = torch.linalg.pinv(span, rtol=1e-10, hermitian=True) @ (products[1:, 0] / scales) / scales
    return torch.cat([found.new_ones(1), -found])
