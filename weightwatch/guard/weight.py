"""A weight that a guard can change: one that is trained itself, or one that LoRA changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from weightwatch.guard.trained import Trained
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.weights.reader import Box


@dataclass(frozen=True)
class Direct:
    """A weight that is trained itself.

    Attributes:
        name: Its name in the plain model.
        directions: The directions that have it, by their positions, each with its change.
        parameter: The parameter.
        start: Reads a box of θ₀, in the precision of the parameter.
        by_column: Whether its outputs are columns: an embedding, GPT-2's ``Conv1D``.
    """

    name: str
    directions: Mapping[int, Delta]
    parameter: Trained
    start: Callable[[Box], Tensor]
    by_column: bool

    @property
    def sparse(self) -> list[Trained]:
        """The parameters of which elements may go without a gradient."""
        return [self.parameter]


@dataclass(frozen=True)
class Adapted:
    """A weight that LoRA changes by ``s B A``, or the transpose of that.

    Attributes:
        name: Its name in the plain model.
        directions: The directions that have it, by their positions, each with its change in the orientation of B A.
        a: A, shape (r, in).
        b: B, shape (out, r).
        by_left: Whether B limits the change, so that A is changed.
        scale: s.
        started: ⟨s B₀ A₀,w⟩ of each direction, on the process that counts it; zero on others.
        limit: The factor that limits the change, whole: A, or B if ``by_left``.
    """

    name: str
    directions: Mapping[int, Delta]
    a: Trained
    b: Trained
    by_left: bool
    scale: float
    started: Sequence[float]
    limit: Tensor

    @property
    def sparse(self) -> list[Trained]:
        """The parameters of which elements may go without a gradient: A of embeddings."""
        return [self.a] if self.by_left else []


def oriented(w: Delta, turned: bool) -> Delta:
    """Return a direction's change of a weight, or its transpose, as ``left @ right`` if it is in factors."""
    if not isinstance(w, LowRank):
        return w.T if turned else w
    rows, columns = w.oriented
    return LowRank(columns.T, rows.T) if turned else LowRank(rows, columns)
