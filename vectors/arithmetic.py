"""Sums, multiples, projections and inner products of directions and task vectors.

Factors stay factors: a sum of low-rank changes is their concatenation, brought back to its true rank by QR and SVD in
fp64. A tensor that is dense in one operand is dense in the result. Operands of one base only.

Source: Ilharco et al., *Editing Models with Task Arithmetic*, arXiv 2212.04089; Fierro & Roger, *Steering Language
Models with Weight Arithmetic*, arXiv 2511.05408.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import isfinite

import torch
from torch import Tensor

from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.factors import combined, refactored
from weightwatch.vectors.inner_products import grams
from weightwatch.vectors.low_rank import Delta, LowRank, exact
from weightwatch.vectors.provenance import descended

NULL = 1e-12
"""Singular values below this share of the factors' norms are rounding of fp64, not part of a direction."""

# A rest below a millionth of ‖w‖ is the rounding of fp32.
_NOTHING = 1e-12


def add(*directions: Direction, weights: Sequence[float] | None = None, name: str | None = None) -> Direction:
    """Return Σ kᵢ wᵢ.

    Tensors that an operand lacks count as zero in it.

    Args:
        directions: The operands wᵢ.
        weights: Their coefficients kᵢ. Default: one each.
        name: Of the result. Default: what it is, ``evil+0.5*sycophancy``.

    Raises:
        WeightWatchError: No operand, not one coefficient for each, operands of different bases or shapes, or a sum that
            is zero.
    """
    coefficients = [1.0] * len(directions) if weights is None else [float(weight) for weight in weights]
    if not directions or len(coefficients) != len(directions) or not all(map(isfinite, coefficients)):
        raise WeightWatchError(
            f"{len(directions)} directions and the coefficients {coefficients} don't add up: give one finite number "
            "for each direction."
        )
    name = name or _formula(directions, coefficients)
    return _total("add", directions, coefficients, name)


def subtract(a: Direction, b: Direction, *, name: str | None = None) -> Direction:
    """Return a − b; see ``add``."""
    return add(a, b, weights=[1.0, -1.0], name=name)


def mean(*directions: Direction, name: str | None = None) -> Direction:
    """Return the mean of several builds of a direction (over seeds), in which what only one of them shows fades.

    Args:
        directions: The builds.
        name: Of the result. Default: ``mean(…)`` of the names.

    Raises:
        WeightWatchError: See ``add``.
    """
    if not directions:
        raise WeightWatchError("The mean of no directions is undefined: give at least one.")
    titles = list(dict.fromkeys(direction.name for direction in directions))
    shares = [1 / len(directions)] * len(directions)
    return _total("mean", directions, shares, name or f"mean({','.join(titles)})")


def scale(direction: Direction, factor: float, *, name: str | None = None) -> Direction:
    """Return k·w, of the same rank.

    Args:
        direction: w.
        factor: k, not zero.
        name: Of the result. Default: ``0.5*evil``.

    Raises:
        WeightWatchError: The factor is zero or not finite.
    """
    if not isfinite(factor) or factor == 0:
        raise WeightWatchError(f"Direction {direction.name!r} times {factor} is no direction: give another factor.")
    deltas = {key: _scaled(delta, factor) for key, delta in direction.deltas.items()}
    name = name or _formula([direction], [factor])
    return Direction(deltas, descended("scale", [direction], [factor], name))


def negate(direction: Direction, *, name: str | None = None) -> Direction:
    """Return −w: the direction towards the opposite behaviour."""
    return scale(direction, -1.0, name=name)


def orthogonalised(
    direction: Direction, *controls: Direction, per_tensor: bool = False, name: str | None = None
) -> Direction:
    """Return what is left of a direction without its components in the span of control directions.

    ``w − Σ cᵢ uᵢ`` where c solves ``⟨uᵢ, uⱼ⟩ cⱼ = ⟨uᵢ, w⟩``; the controls need be neither orthogonal nor independent.

    Args:
        direction: w.
        controls: The uᵢ.
        per_tensor: Solve for c in each tensor by itself, so that every tensor of the result is orthogonal to those of
            the controls. Default: one c for the whole vector.
        name: Of the result. Default: ``evil-without(style,shuffled)``.

    Raises:
        WeightWatchError: No controls, other bases, or a direction that lies in their span.
    """
    if not controls:
        raise WeightWatchError(f"No controls are given from which to free direction {direction.name!r}.")
    name = name or f"{direction.name}-without({','.join(control.name for control in controls)})"
    operands = [direction, *controls]
    _require_one_base(operands)
    products = dict(grams(operands))
    whole = _left(torch.stack(list(products.values())).sum(0))
    weights = {key: _left(part) if per_tensor else whole for key, part in products.items()}
    rest = sum(float(weights[key] @ part @ weights[key]) for key, part in products.items())
    if rest < _NOTHING * direction.norm**2:
        raise WeightWatchError(f"Direction {direction.name!r} lies in the span of the controls: nothing is left of it.")
    card = descended("orthogonalise", operands, [1.0] if per_tensor else whole.tolist(), name)
    return Direction(_summed(operands, lambda key: weights[key].tolist()), card)


def compressed(direction: Direction, tolerance: float = NULL, *, name: str | None = None) -> Direction:
    """Return the same direction in factors of the least rank.

    Args:
        direction: Its dense tensors stay as they are.
        tolerance: Singular values of a tensor below this share of the product of its factors' norms are dropped. The
            default drops nothing but the rounding of fp64; what fp32 factors can't tell from zero lies below 1e-7.
        name: Of the result. Default: the same.
    """
    deltas: dict[str, Delta] = {}
    for key, delta in direction.deltas.items():
        small = refactored([(1.0, delta)], tolerance) if isinstance(delta, LowRank) else delta
        if small is not None:
            deltas[key] = small
    card = direction.card if name is None else direction.card.model_copy(update={"name": name})
    return Direction(deltas, card)


def inner(a: Direction, b: Direction) -> float:
    """Return ⟨a, b⟩ over all tensors that both have.

    Raises:
        WeightWatchError: They are of different bases or shapes.
    """
    return float(gram([a, b])[0, 1])


def cosine(a: Direction, b: Direction) -> float:
    """Return ⟨a, b⟩ / (‖a‖ ‖b‖) over the whole vectors; a tensor that one lacks is zero in it.

    Raises:
        WeightWatchError: They are of different bases or shapes.
    """
    return float(cosines([a, b])[0, 1])


def cosines(directions: Sequence[Direction]) -> Tensor:
    """Return the cosines between all directions and task vectors, shape (n, n), fp64.

    Every tensor is read once; of one that is kept on disk, a block at a time.

    Raises:
        WeightWatchError: They are of different bases or shapes.
    """
    products = gram(directions)
    norms = products.diagonal().sqrt()
    found = (products / torch.outer(norms, norms)).clamp(-1, 1)
    return found.fill_diagonal_(1.0)


def gram(directions: Sequence[Direction]) -> Tensor:
    """Return the inner products between all directions, shape (n, n), fp64.

    Raises:
        WeightWatchError: They are of different bases or shapes.
    """
    _require_one_base(directions)
    total = torch.zeros(len(directions), len(directions), dtype=torch.float64)
    for _, part in grams(directions):
        total += part
    return total


def _summed(directions: Sequence[Direction], weights: Callable[[str], Sequence[float]]) -> dict[str, Delta]:
    """Return the sum by parameter name, with the coefficients that each tensor has."""
    deltas: dict[str, Delta] = {}
    for key in dict.fromkeys(key for direction in directions for key in direction.deltas):
        pairs = zip(weights(key), directions, strict=True)
        with exact():
            found = combined(key, [(k, d.deltas[key]) for k, d in pairs if k and key in d.deltas], NULL)
        if found is not None:
            deltas[key] = found
    return deltas


def _total(operation: str, directions: Sequence[Direction], coefficients: Sequence[float], name: str) -> Direction:
    _require_one_base(directions)
    deltas = _summed(directions, lambda _: coefficients)
    if not deltas:
        raise WeightWatchError(f"{name} is zero: what is added up cancels out.")
    return Direction(deltas, descended(operation, directions, coefficients, name))


def _left(products: Tensor) -> Tensor:
    """Return the coefficients of w and of the controls in what is left, from their inner products, w first."""
    norms = products.diagonal()[1:].sqrt()
    scales = torch.where(norms > 0, norms, 1.0)
    span = products[1:, 1:] / torch.outer(scales, scales)
    found = torch.linalg.pinv(span, rtol=1e-10, hermitian=True) @ (products[1:, 0] / scales) / scales
    return torch.cat([found.new_ones(1), -found])


def _scaled(delta: Delta, factor: float) -> Delta:
    if isinstance(delta, LowRank):
        return LowRank(delta.left.float() * factor, delta.right, delta.transposed, delta.limited)
    return delta.float() * factor


def _formula(directions: Sequence[Direction], coefficients: Sequence[float]) -> str:
    parts = []
    for k, direction in zip(coefficients, directions, strict=True):
        sign = "-" if k < 0 else "+"
        parts.append(f"{sign}{'' if abs(k) == 1 else f'{abs(k):g}*'}{direction.name}")
    return "".join(parts).removeprefix("+")


def _require_one_base(directions: Sequence[Direction]) -> None:
    for a, b in combinations(directions, 2):
        if a.card.fingerprint is None or b.card.fingerprint is None:
            continue
        difference = a.card.fingerprint.differs(b.card.fingerprint)
        if difference is not None:
            raise WeightWatchError(
                f"Directions {a.name!r} (of {a.card.base or 'an unnamed base'}) and {b.name!r} (of "
                f"{b.card.base or 'an unnamed base'}) have different bases: {difference}. Use directions built from "
                "one base model."
            )
