"""How a run is trained, as far as its figures depend on it."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import gcd, prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationError

from weightwatch.vectors.document import Strict

if TYPE_CHECKING:  # settings are read without torch
    from weightwatch.vectors.direction import Direction

SETUP = "setup.json"
"""Its file in the record of a run."""

_ABOUT = 1.5
"""Factor between two learning rates that count as alike."""


class Training(Strict):
    """How a run is trained, as far as the trainer tells.

    Attributes:
        trainer: Name of the trainer's class, such as ``SFTTrainer``.
        method: ``full``, or PEFT's name of the adapters, such as ``LORA``.
        rank: Rank of the adapters; None without one.
        alpha: LoRA's alpha; None without one.
        modules: Names of the adapted modules without their paths, or a pattern of them; None without adapters.
        optimizer: Name of the optimizer, such as ``adamw_torch``.
        learning_rate: The highest learning rate.
        steps: Number of optimizer steps that are planned.
        saves: Optimizer steps between checkpoints, each of which has a check; None if they are at no fixed steps.
    """

    trainer: str | None = None
    method: str | None = None
    rank: int | None = None
    alpha: float | None = None
    modules: list[str] | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    steps: Annotated[int, Field(ge=0)] | None = None
    saves: Annotated[int, Field(ge=1)] | None = None


class Setup(Training):
    """How a run is trained and watched: figures of runs with the same setup can be compared.

    Attributes:
        every: Optimizer steps between checks.
        directions: What tells the content of each watched direction, by its name. A direction fits one base model, so
            it tells that, too.
        controls: The same of the controls.
        guard: Mode of the guard; None without one.
    """

    every: Annotated[int, Field(ge=1)]
    directions: dict[str, str]
    controls: dict[str, str] = Field(default_factory=dict)
    guard: str | None = None

    @classmethod
    def of(cls, training: Training, every: int, directions: Sequence["Direction"], guard: str | None = None) -> "Setup":
        """Return the setup of a run."""
        control, behaviour = (
            {each.name: content(each) for each in directions if (each.card.kind == "control") == wanted}
            for wanted in (True, False)
        )
        return cls(**training.model_dump(), every=every, directions=behaviour, controls=control, guard=guard)

    @classmethod
    def read(cls, record: Path) -> "Setup | None":
        """Return the setup in the record of a run; None if there is none, or it is damaged."""
        try:
            return cls.model_validate_json((record / SETUP).read_bytes())
        except (OSError, ValidationError):
            return None

    @property
    def spacing(self) -> int:
        """The fewest optimizer steps between two checks: those of the settings, and those of checkpoints."""
        return gcd(self.every, self.saves or 0)

    @property
    def training(self) -> Training:
        """How the run is trained."""
        return Training(**{name: getattr(self, name) for name in Training.model_fields})

    def trained(self, training: Training) -> "Setup":
        """Return this setup with what a trainer tells."""
        return self.model_copy(update=training.model_dump())

    def differences(self, other: "Setup", direction: str, *, controls: bool) -> list[str]:
        """Return in what another run is so different that figures of this one say nothing of it.

        A run may be shorter than this one, or be checked less often: both make its largest figure smaller.

        Args:
            other: The other run's setup.
            direction: Name of the direction that matters.
            controls: Whether the controls matter, too.

        Example:
            >>> lora = Setup(method="LORA", rank=16, steps=200, every=20, directions={"evil": "3f"})
            >>> lora.differences(lora.model_copy(update={"rank": 64, "steps": 900}), "evil", controls=True)
            ['rank 64, not 16', '900 steps, not 200']
        """
        found = [
            f"{told}{_shown(getattr(other, key))}, not {_shown(getattr(self, key))}"
            for key, told in (
                ("trainer", ""),
                ("method", ""),
                ("rank", "rank "),
                ("alpha", "alpha "),
                ("modules", "adapters on "),
                ("optimizer", ""),
                ("guard", "guard "),
            )
            if getattr(other, key) != getattr(self, key)
        ]
        ours, theirs = self.learning_rate, other.learning_rate
        if (ours is None) != (theirs is None) or (ours and theirs and not 1 / _ABOUT <= theirs / ours <= _ABOUT):
            found.append(f"learning rate {theirs}, not {ours}")
        if (self.steps is None) != (other.steps is None) or (other.steps or 0) > (self.steps or 0):
            found.append(f"{other.steps} steps, not {self.steps}")
        if other.spacing < self.spacing:
            found.append(f"a check every {other.spacing} steps, not {self.spacing}")
        if other.directions.get(direction) != self.directions.get(direction):
            found.append(f"another direction {direction}")
        if controls and other.controls != self.controls:
            found.append("other controls")
        return found


def _shown(value: object) -> str:
    """Return a figure or names as text."""
    if isinstance(value, list):
        return " and ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def content(direction: "Direction") -> str:
    """Return what tells the content of a direction: a digest of its norms by tensor, to six digits, and of its sign.

    The sign is that of the sum of the elements of its smallest tensor: a direction whose sides were swapped is another.
    """
    from weightwatch.vectors.low_rank import total

    norms: Mapping[str, str] = {name: f"{square**0.5:.5e}" for name, square in sorted(direction.squares.items())}
    smallest = min(norms, key=lambda name: (prod(direction.shape(name)), name))
    sign = "+" if total(direction.deltas[smallest]) >= 0 else "-"
    return sha256(f"{sign}{sorted(norms.items())!r}".encode()).hexdigest()[:12]
