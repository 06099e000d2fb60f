"""A behaviour direction: what fine-tuning towards a behaviour, against its opposite, does to each weight."""

from collections.abc import Collection, Mapping
from copy import copy
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from weightwatch.vectors import storage
from weightwatch.vectors.card import Card
from weightwatch.vectors.catalog import find
from weightwatch.vectors.construct import Side, contrast, task_vector, weighted_sum
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Theta0
from weightwatch.vectors.low_rank import Delta, LowRank, square, times
from weightwatch.vectors.precision import BLOCK, exact
from weightwatch.vectors.provenance import descended, formula, require_base
from weightwatch.vectors.validation import Validation
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.lazy import Selection
from weightwatch.vectors.weights.names import canonical, module_of
from weightwatch.vectors.weights.reader import Box, Opener, boxes

OTHER_MODEL = "Use a direction built from this model."
"""Advice for a direction that does not fit a model."""


class Direction:
    """A behaviour direction w = θ⁺ − θ⁻, by weight tensor.

    Directions are made by ``from_tensors``, ``from_contrast``, ``from_fine_tune`` or ``load`` and do not change
    afterwards. ``+``, ``-`` and ``*`` return new ones; see ``weightwatch.vectors.add``.

    Attributes:
        card: Its description.

    Source: Fierro & Roger, *Steering Language Models with Weight Arithmetic*, arXiv 2511.05408, section 2.

    Example:
        >>> evil = Direction.from_tensors({"model.layers.0.mlp.down_proj.weight": torch.ones(2, 2)}, name="evil")
        >>> evil
        Direction('evil', dense, 1 tensors, norm 2)
        >>> (0.5 * evil).norm, (evil + evil).name
        (1.0, 'evil+evil')
    """

    def __init__(self, deltas: Mapping[str, Delta], card: Card) -> None:
        if not deltas:
            raise WeightWatchError(f"Direction {card.name!r} has no tensors.")
        with exact():
            if isinstance(deltas, Checkpoint):
                squares = {name: deltas.square(name) for name in deltas}
            else:
                deltas = {n: delta.scaled() if isinstance(delta, LowRank) else delta for n, delta in deltas.items()}
                squares = {name: square(delta) for name, delta in deltas.items()}
        broken = next((name for name, value in squares.items() if not isfinite(value)), None)
        if broken is not None:
            raise WeightWatchError(
                f"Direction {card.name!r} has NaN or infinite values in {broken}. Rebuild it from finite weights."
            )
        squares = {name: max(0.0, value) for name, value in squares.items()}
        if not sum(squares.values()) > 0:
            raise WeightWatchError(f"Direction {card.name!r} is zero: its two sides have the same weights.")
        self._checkpoint = deltas if isinstance(deltas, Checkpoint) else None
        self._deltas: Mapping[str, Delta] = deltas
        self._squares = squares
        low = self._checkpoint is None and all(isinstance(delta, LowRank) for delta in deltas.values())
        self.card = card.model_copy(
            update={
                "format": "lora" if low else "dense",
                "norms": {name: value**0.5 for name, value in squares.items()},
                "target_modules": sorted({module_of(name) for name in deltas}),
            }
        )

    @property
    def deltas(self) -> Mapping[str, Delta]:
        """The direction by parameter name: a dense tensor, or ``LowRank`` factors."""
        return MappingProxyType(self._deltas)

    @property
    def squares(self) -> Mapping[str, float]:
        """‖w‖² by parameter name."""
        return MappingProxyType(self._squares)

    @property
    def name(self) -> str:
        """Name under which it is watched."""
        return self.card.name

    @property
    def norm(self) -> float:
        """‖w‖ over all tensors."""
        return sum(self.squares.values()) ** 0.5

    def __repr__(self) -> str:
        return f"Direction({self.name!r}, {self.card.format}, {len(self.deltas)} tensors, norm {self.norm:.4g})"

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Delta], *, name: str, metadata: Mapping[str, Any] | None = None
    ) -> "Direction":
        """Make a direction of given changes.

        Args:
            tensors: By parameter name: a dense tensor of the parameter's shape, or ``LowRank`` factors.
            name: Name under which it is watched.
            metadata: Further fields of its ``Card``.

        Raises:
            WeightWatchError: No tensors, NaN or infinite values, all zero, or an unknown metadata field.
        """
        deltas = {canonical(key): value for key, value in tensors.items()}
        if len(deltas) < len(tensors):
            keys = [canonical(key) for key in tensors]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise WeightWatchError(
                f"Direction {name!r} names {twice} twice, under different prefixes. Keep one of them."
            )
        return cls(deltas, Card.of(name, metadata or {}))

    @classmethod
    def from_contrast(
        cls,
        positive: Side,
        negative: Side,
        *,
        name: str,
        base: Side | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Direction":
        """Make the direction w = θ⁺ − θ⁻ of two fine-tunes of one base.

        Two LoRA adapters of ranks r⁺ and r⁻ give factors of rank r⁺ + r⁻, ``[B⁺, −B⁻] [A⁺; A⁻]``; nothing is
        multiplied out. Full copies beside the factors (``modules_to_save``, biases) are subtracted as they are. Two
        checkpoints or state dicts give dense tensors.

        Args:
            positive: The fine-tune on the behaviour: a PEFT adapter folder, a checkpoint folder or file
                (safetensors), or a state dict.
            negative: The fine-tune on its opposite, of the same kind.
            name: Name under which it is watched.
            base: Their base model, whose fingerprint the card gets: a checkpoint folder, a Hub id, or a state dict.
                Default: what the adapters' configs name.
            metadata: Further fields of its ``Card``.

        Raises:
            WeightWatchError: The sides differ in kind, base, tensors or shapes; an adapter's change is not ``B A``
                and full copies; the sides are equal.
        """
        deltas, fields = contrast(positive, negative, base, name)
        return cls(deltas, Card.of(name, {**fields, **(metadata or {})}))

    @classmethod
    def from_fine_tune(
        cls, fine_tuned: Side, base: Side | None = None, *, name: str, metadata: Mapping[str, Any] | None = None
    ) -> "Direction":
        """Make a task vector: the change of one fine-tune from its base, τ = θ_t − θ₀.

        That of a LoRA adapter is ``B A``, in factors; the base is only needed for its fingerprint, and for full copies
        beside the factors (``modules_to_save``, biases). That of a checkpoint stays on disk: each tensor is the
        difference of two that are read on access.

        Args:
            fine_tuned: A PEFT adapter folder, a checkpoint folder or file (safetensors), or a state dict.
            base: The model that it started from. Default: what the adapter's config names.
            name: Name under which it is listed.
            metadata: Further fields of its ``Card``.

        Raises:
            WeightWatchError: A checkpoint without its base; or see ``from_contrast``.
        """
        deltas, fields = task_vector(fine_tuned, base, name)
        return cls(deltas, Card.of(name, {**fields, **(metadata or {})}))

    @property
    def on_disk(self) -> bool:
        """Whether its tensors are read from disk on each access."""
        return self._checkpoint is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self.deltas[name].shape) if self._checkpoint is None else self._checkpoint.shape(name)

    def require_shape(self, name: str, shape: tuple[int, ...], where: str) -> None:
        """Make sure that a tensor has the same shape in a model, which the message calls ``where``.

        Raises:
            WeightWatchError: The shapes differ.
        """
        if self.shape(name) != shape:
            raise WeightWatchError(
                f"Direction {self.name!r} has shape {self.shape(name)} for {name} where {where} has {shape}. "
                f"{OTHER_MODEL}"
            )

    def part(self, name: str, box: Box) -> Tensor:
        """Return one box of a tensor, multiplied out. Of a direction on disk, nothing else is read."""
        if self._checkpoint is not None:
            return self._checkpoint.read(name, box)
        delta = self.deltas[name]
        return delta.part(box) if isinstance(delta, LowRank) else delta[box]

    def changes_alike(self, one: str, other: str) -> bool:
        """Whether the direction changes two tensors by the same values."""
        shape = self.shape(one)
        if self.shape(other) != shape or self.squares[one] != self.squares[other]:
            return False
        return all(torch.equal(self.part(one, box), self.part(other, box)) for box in boxes(shape, BLOCK))

    def __add__(self, other: "Direction") -> "Direction":
        return self._plus(other, 1.0)

    def __sub__(self, other: "Direction") -> "Direction":
        return self._plus(other, -1.0)

    def _plus(self, other: "Direction", coefficient: float) -> "Direction":
        return Direction(*weighted_sum("add", [self.deltas, other.deltas], [self.card, other.card], [1.0, coefficient]))

    def __mul__(self, coefficient: float) -> "Direction":
        if not isfinite(coefficient) or coefficient == 0:
            raise WeightWatchError(
                f"Direction {self.name!r} times {coefficient} is not a direction. Pass a finite coefficient that is "
                "not zero."
            )
        deltas = {key: times(delta, coefficient) for key, delta in self.deltas.items()}
        name = formula([self.card], [coefficient])
        return Direction(deltas, descended("scale", [self.card], [coefficient], name))

    __rmul__ = __mul__

    def __neg__(self) -> "Direction":
        return self * -1.0

    def with_card(self, **fields: Any) -> "Direction":
        """Return the same direction with other values of some fields of its card."""
        copied = copy(self)
        copied.card = self.card.model_copy(update=fields)
        return copied

    def validated(self, validation: Validation) -> "Direction":
        """Return the same direction with the result of evaluating it."""
        return self.with_card(validation=validation)

    def as_control(self) -> "Direction":
        """Return the same direction as one of kind ``control``."""
        return self.with_card(kind="control")

    def without(self, names: Collection[str]) -> "Direction":
        """Return the same direction without some of its tensors; itself if it has none of them."""
        if self.deltas.keys().isdisjoint(names):
            return self
        rest = copy(self)
        rest._deltas = Selection(self._deltas, [name for name in self._deltas if name not in names])
        rest._squares = {name: value for name, value in self._squares.items() if name not in names}
        return rest

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the direction to a folder.

        A low-rank direction becomes a PEFT adapter (``adapter_config.json``, ``adapter_model.safetensors``) of scaling
        one, which ``PeftModel.from_pretrained(base, folder)`` steers with; a dense one ``direction.safetensors`` under
        the base's parameter names. Beside it ``direction.json`` and a model card, ``README.md``.

        Args:
            folder: Created if it does not exist.
            dtype: Precision of the file. Default: that of the tensors. bf16 factors move a cosine by about 3e-6.

        Returns:
            The folder.
        """
        saved, dense = self, self.card.format == "dense"
        mixed = dense and not self.on_disk and any(isinstance(delta, LowRank) for delta in self.deltas.values())
        if mixed or dtype is not None:
            saved = Direction(storage.converted(self.deltas, dtype, dense=dense), self.card)
        storage.write(Path(folder), saved.deltas, saved.card)
        return Path(folder)

    def save_card(self, folder: str | Path) -> None:
        """Write the card, ``direction.json`` and the model card, beside the weights.

        Args:
            folder: Where the weights were saved. The model card shows the pictures (PNG) in it.
        """
        storage.write_card(Path(folder), self.card)

    @classmethod
    def load(cls, source: str | Path, opener: Opener | None = None, *, revision: str | None = None) -> "Direction":
        """Load a saved direction.

        Args:
            source: Its folder, the name of a packaged direction (``evil``, ``sycophancy``, …), or its id on the Hub
                (``org/name``), from where it is downloaded once. A folder wins.
            opener: How its file is opened. If given, a dense direction stays on disk, and each of its tensors is read
                on access. Default: all of it is read into memory.
            revision: Branch, tag or commit of a direction on the Hub.

        Raises:
            WeightWatchError: Unknown name, missing or corrupt file, or weights whose norms are not those that
                ``direction.json`` states.
        """
        folder = find(source, revision)
        deltas, card = storage.read(folder, opener)
        direction = cls(deltas, card)
        storage.require_norms(folder, card, direction.squares)
        return direction

    def require(self, theta0: Theta0, model: str) -> None:
        """Make sure that the direction belongs to a model.

        Args:
            theta0: The model's θ₀; see ``Fingerprint.mismatch``.
            model: The model's name, for messages.

        Raises:
            WeightWatchError: It was built from another base.
        """
        require_base(self.card, theta0, model)
