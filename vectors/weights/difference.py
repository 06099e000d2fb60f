"""The change of weights since the reference: θ_t − θ₀."""

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.names import indexed
from weightwatch.vectors.weights.reader import FLOATS, Box


def moved(now: Tensor, start: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return θ_t − θ₀ in fp32.

    θ₀ is rounded to the precision in which the model has the weight, as it was when the model was loaded. Then both are
    converted to fp32 and subtracted. Without the rounding, a bf16 model of an fp32 base seems to have moved by the
    rounding error of each weight.

    Args:
        now: θ_t.
        start: θ₀, of the same shape and on the same device.
        dtype: The precision in which the model has the weight. Default: that of ``now``; another one if ``now`` is an
            fp32 master copy.

    Example:
        >>> moved(torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.001, 1.0])).tolist()
        [0.0, 1.0]
    """
    return now.float() - start.to(dtype or now.dtype).float()


class Difference(Checkpoint):
    """The change of each tensor from one checkpoint to another, read from both on access; see ``moved``.

    It has no tensor whose element type is not a floating-point one, and none outside the layers that only one side has,
    such as a tied head.

    Args:
        now: The fine-tuned checkpoint.
        start: The checkpoint that it started from.

    Raises:
        WeightWatchError: One side lacks a tensor of a layer, or has it in another shape.
    """

    def __init__(self, now: Checkpoint, start: Checkpoint) -> None:
        self.path, self._now, self.start = now.path, now, start
        lacking = next((name for name in sorted({*now} ^ {*start}) if indexed(name)), None)
        if lacking is not None:
            raise WeightWatchError(
                f"Only one of {now.path} and {start.path} has {lacking}. Pass a fine-tune and the base that it started "
                "from."
            )
        self._names = dict.fromkeys(n for n in now if n in start and {now.dtype(n), start.dtype(n)} <= FLOATS)
        for name in self._names:
            if now.shape(name) != start.shape(name):
                raise WeightWatchError(
                    f"{now.path} and {start.path} differ in the shape of {name}: {now.shape(name)} and "
                    f"{start.shape(name)}. Pass a fine-tune and the base that it started from."
                )

    def __getitem__(self, name: str) -> Tensor:
        return moved(self._now[name], self.start[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._now.shape(name)

    def dtype(self, name: str) -> str:
        """Return the element type of a difference."""
        return "F32"

    def read(self, name: str, box: Box) -> Tensor:
        """Read one box of a difference, and nothing else of it."""
        return moved(self._now.read(name, box), self.start.read(name, box))
