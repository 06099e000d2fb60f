"""A change of one weight, dense or as a product of two thin factors; norms and sums of such changes.

Factors are never multiplied out. With changes ``L₁ R₁`` and ``L₂ R₂``::

    ⟨L₁ R₁, L₂ R₂⟩ = Σ (L₁ᵀ L₂) ∘ (R₁ R₂ᵀ)

so an inner product of two rank-r changes of an n × m weight costs r² (n + m) multiplications instead of n m r.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.precision import dot, exact, wide

NULL = 1e-12
"""Singular values below this share of the factors' norms are fp64 rounding, not part of a direction."""


@dataclass(frozen=True)
class LowRank:
    """The change ``scale * left @ right`` of one weight.

    Attributes:
        left: Shape (out, r): LoRA's B.
        right: Shape (r, in): LoRA's A.
        transposed: The weight is the transpose of the product, as for embeddings and GPT-2's ``Conv1D``.
        limited: The factor that limits what the change can express, since training moves only the other one from zero:
            ``right`` for linear layers (A), ``left`` for embeddings, whose adapter is the product's transpose.
        scale: LoRA's scaling. It is separate from the factors so that a check of a model in training need not copy
            them. A ``Direction`` has it in ``left``.

    Example:
        >>> change = LowRank(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0, 4.0]]), scale=0.5)
        >>> change.shape, change.rank
        ((2, 3), 1)
        >>> change.dense().tolist()
        [[1.5, 0.0, 2.0], [3.0, 0.0, 4.0]]
    """

    left: Tensor
    right: Tensor
    transposed: bool = False
    limited: str = "right"
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that it changes."""
        shape = (self.left.shape[0], self.right.shape[1])
        return shape[::-1] if self.transposed else shape

    @property
    def rank(self) -> int:
        """The number of columns of ``left``."""
        return self.left.shape[1]

    @cached_property
    def left_gram(self) -> Tensor:
        """``leftᵀ left``, shape (r, r), multiplied in fp32 and kept in fp64."""
        return wide(self.left.float().T @ self.left.float())

    @cached_property
    def right_gram(self) -> Tensor:
        """``right rightᵀ``, shape (r, r), multiplied in fp32 and kept in fp64."""
        return wide(self.right.float() @ self.right.float().T)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LowRank":
        """Return it with both factors on a device and of a dtype; the same tensors if nothing changes."""
        return replace(self, left=self.left.to(device, dtype), right=self.right.to(device, dtype))

    def scaled(self) -> "LowRank":
        """Return it with the scale in ``left``; itself if the scale is one."""
        return self if self.scale == 1 else replace(self, left=self.left * self.scale, scale=1.0)

    @property
    def oriented(self) -> tuple[Tensor, Tensor]:
        """The factors in the orientation of the weight: ``left, right``, or ``rightᵀ, leftᵀ`` if transposed."""
        whole = self.scaled()
        return (whole.right.T, whole.left.T) if self.transposed else (whole.left, whole.right)

    def part(self, box: tuple[slice, ...]) -> Tensor:
        """Multiply out one box of the weight's change, in fp32.

        Args:
            box: One slice for each dimension of the weight.
        """
        rows, columns = self.oriented
        return rows[box[0]].float() @ columns[:, box[1]].float()

    def dense(self) -> Tensor:
        """Multiply out, in fp32 and in the orientation of the weight."""
        product = self.left.float() * self.scale @ self.right.float()
        return product.T if self.transposed else product


Delta: TypeAlias = LowRank | Tensor
"""A change of one weight: factors, or a dense tensor of the weight's shape."""

Terms: TypeAlias = Sequence[tuple[float, Delta]]
"""Coefficients, each with its change."""


def square(delta: Delta) -> float:
    """Return the squared Frobenius norm of a change; of factors it is ``scale² Σ (LᵀL) ∘ (R Rᵀ)``."""
    if isinstance(delta, LowRank):
        return delta.scale**2 * float((delta.left_gram * delta.right_gram).sum())
    return float(dot(delta.reshape(-1), delta.reshape(-1)))


def total(delta: Delta) -> float:
    """Return the sum of the elements of a change, in fp64; of factors without multiplying them out."""
    if isinstance(delta, LowRank):
        return delta.scale * float(wide(delta.left).sum(0) @ wide(delta.right).sum(1))
    return float(wide(delta).sum())


def times(delta: Delta, coefficient: float) -> Delta:
    """Return k times a change in fp32, of factors with k in ``left``."""
    if isinstance(delta, LowRank):
        return LowRank(delta.left.float() * coefficient, delta.right, delta.transposed, delta.limited)
    return delta.float() * coefficient


def join(name: str, parts: Sequence[tuple[float, LowRank]]) -> LowRank:
    """Concatenate the signed sides of one weight as factors: ``[B⁺, −B⁻] [A⁺; A⁻]``.

    If both sides share their start, A⁺ and A⁻ are nearly equal, and that is a small difference of large products. Then
    the result is ``[B⁺ − B⁻, B⁻] [A⁺; A⁺ − A⁻]``: the same product without the cancellation.

    Args:
        name: The parameter's name, for messages.
        parts: One or two changes, each with its sign, +1 or −1.

    Raises:
        WeightWatchError: The sides differ in shape or orientation.
    """
    shapes = {part.shape for _, part in parts}
    if len(shapes) > 1 or len({part.transposed for _, part in parts}) > 1:
        raise WeightWatchError(f"The sides differ in the shape of {name}: {' and '.join(map(str, sorted(shapes)))}.")
    parts = [(sign, part.scaled()) for sign, part in parts]
    first, last = parts[0][1], parts[-1][1]
    lefts, rights = [sign * part.left for sign, part in parts], [part.right for _, part in parts]
    if len(parts) > 1 and first.rank == last.rank:
        left, right = first.left - last.left, first.right - last.right
        if right.norm() < last.right.norm() and left.norm() < last.left.norm() + first.left.norm():
            lefts, rights = [left, last.left], [first.right, right]
    return LowRank(torch.cat(lefts, dim=1), torch.cat(rights, dim=0), first.transposed, first.limited)


def require_one_shape(name: str, shapes: Sequence[tuple[int, ...]], titles: Sequence[str] = ()) -> None:
    """Make sure that a tensor has one shape in several directions, which the message names by ``titles``.

    Raises:
        WeightWatchError: The shapes differ.
    """
    if len(set(shapes)) > 1:
        named = [f"{shape} in {title!r}" for shape, title in zip(shapes, titles, strict=False)]
        found = ", ".join(named) or " and ".join(map(str, sorted(set(shapes))))
        raise WeightWatchError(
            f"The directions differ in the shape of {name}: {found}. Use directions built from one base model."
        )


def summed(operands: Sequence[Mapping[str, Delta]], coefficients: Callable[[str], Sequence[float]]) -> dict[str, Delta]:
    """Return Σ kᵢ wᵢ by parameter name, without the tensors that are zero.

    A sum of factors is of factors again. A tensor that is dense in one operand is dense in the sum.

    Args:
        operands: The changes wᵢ by parameter name. A tensor that an operand lacks counts as zero.
        coefficients: Returns the kᵢ of a tensor.

    Raises:
        WeightWatchError: The operands differ in the shape of a tensor.
    """
    total: dict[str, Delta] = {}
    for name in dict.fromkeys(name for operand in operands for name in operand):
        pairs = zip(coefficients(name), operands, strict=True)
        with exact():
            found = _sum(name, [(k, operand[name]) for k, operand in pairs if k and name in operand])
        if found is not None:
            total[name] = found
    return total


def _sum(name: str, terms: Terms) -> Delta | None:
    shapes = [tuple(change.shape) for _, change in terms]
    require_one_shape(name, shapes)
    if not terms:
        return None
    thin = [(k, change) for k, change in terms if isinstance(change, LowRank)]
    if len(thin) == len(terms):
        return refactored(thin)
    total = torch.zeros(shapes[0], dtype=torch.float64, device=_device(terms[0][1]))
    for k, change in terms:
        total.add_(_multiplied_out(change).to(total.device), alpha=k)
    return total.float() if bool(total.any()) else None


def refactored(
    terms: Sequence[tuple[float, LowRank]], tolerance: float = NULL, rank: int | None = None
) -> LowRank | None:
    """Return Σ kᵢ Lᵢ Rᵢ in factors of the least rank, which is at most the sum of the terms' ranks.

    ``[√|k₁| L₁, …] = Q₁ T₁`` and ``[√|k₁| R₁; …]ᵀ = Q₂ T₂``, and then the singular values of ``T₁ T₂ᵀ``, all in fp64.

    Args:
        terms: The coefficients and changes, of one shape.
        tolerance: Singular values below this share of the product of the factors' norms are dropped.
        rank: Keep only so many singular values, the largest. Then the result is the nearest of that rank. Default: all.

    Returns:
        The sum, in fp32 and in the orientation of the first term; None if nothing is left.
    """
    first = terms[0][1]
    device = first.left.device
    lefts, rights = zip(*(_balanced(k, change.to(device, change.left.dtype)) for k, change in terms), strict=True)
    left, right = torch.cat(lefts, dim=1), torch.cat(rights, dim=0)
    (q1, t1), (q2, t2) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(t1 @ t2.T)
    keep = values > tolerance * left.norm() * right.norm()
    if not bool(keep.any()):
        return None
    count = min(int(keep.sum()), rank or len(values))
    root = values[:count].sqrt()
    rows, columns = q1 @ (u[:, :count] * root), (root[:, None] * v[:count]) @ q2.T
    if first.transposed:
        rows, columns = columns.T, rows.T
    left, right = (half.to(device, torch.float32).contiguous() for half in (rows, columns))
    return LowRank(left, right, first.transposed, first.limited)


def _balanced(k: float, change: LowRank) -> tuple[Tensor, Tensor]:
    """Return the factors of k L R in the weight's orientation, in fp64, scaled so that both have the same norm."""
    rows, columns = (wide(half) for half in change.oriented)
    sizes = float(rows.norm()), float(columns.norm())
    if not all(sizes):
        return rows[:, :0], columns[:0]
    size = (abs(k) * sizes[0] * sizes[1]) ** 0.5
    return rows * (size / sizes[0] * (1 if k > 0 else -1)), columns * (size / sizes[1])


def _multiplied_out(change: Delta) -> Tensor:
    if isinstance(change, LowRank):
        rows, columns = change.oriented
        return wide(rows) @ wide(columns)
    return wide(change)


def _device(change: Delta) -> torch.device:
    found = wide(change.left if isinstance(change, LowRank) else change[:0] if change.ndim else change)
    return found.device
