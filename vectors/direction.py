"""A behaviour direction: what fine-tuning towards a behaviour, against its opposite, does to each weight."""

import logging
from collections.abc import Collection, Iterator, Mapping
from copy import copy
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.vectors.base import described
from weightwatch.vectors.card import CARD, Card
from weightwatch.vectors.catalog import find
from weightwatch.vectors.construct import Side, adapter_alone, contrast, is_adapter
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Base
from weightwatch.vectors.low_rank import BLOCK, Delta, LowRank, dot, exact, square
from weightwatch.vectors.validation import Validation
from weightwatch.vectors.weights.checkpoint import Checkpoint, Difference, Mapped, Opener, local_folder
from weightwatch.vectors.weights.names import canonical, module_of
from weightwatch.vectors.weights.peft_adapter import CONFIG, WEIGHTS, read_adapter, read_config, write_adapter
from weightwatch.vectors.weights.reader import Box, boxes

DENSE = "direction.safetensors"
"""File of a direction of full tensors."""

_NORM_TOLERANCE = 1e-3

_logger = logging.getLogger("weightwatch")


class Direction:
    """A behaviour direction w = θ⁺ − θ⁻, per weight tensor.

    Made by ``from_tensors``, ``from_contrast`` or ``load``; not changed afterwards.

    Attributes:
        name: Name under which it is watched.
        deltas: The direction by parameter name: a dense tensor, or ``LowRank`` factors.
        squares: ‖w‖² by parameter name.
        card: Where it comes from.

    Source: Fierro & Roger, *Steering Language Models with Weight Arithmetic*, arXiv 2511.05408, section 2.
    """

    def __init__(self, deltas: Mapping[str, Delta], card: Card) -> None:
        if not deltas:
            raise WeightWatchError(f"Direction {card.name!r} has no tensors.")
        with exact():
            if isinstance(deltas, Checkpoint):
                squares = {name: _stored_square(deltas, name) for name in deltas}
            else:
                deltas = {n: delta.scaled() if isinstance(delta, LowRank) else delta for n, delta in deltas.items()}
                squares = {name: square(delta) for name, delta in deltas.items()}
        broken = next((name for name, value in squares.items() if not isfinite(value)), None)
        if broken is not None:
            raise WeightWatchError(
                f"Direction {card.name!r} holds NaN or infinite values in {broken}. Rebuild it from finite weights."
            )
        squares = {name: max(0.0, value) for name, value in squares.items()}
        if not sum(squares.values()) > 0:
            raise WeightWatchError(f"Direction {card.name!r} is zero: its two sides have the same weights.")
        self._stored = deltas if isinstance(deltas, Checkpoint) else None
        self.deltas = MappingProxyType(deltas)
        self.squares = MappingProxyType(squares)
        low = self._stored is None and all(isinstance(delta, LowRank) for delta in deltas.values())
        self.card = card.model_copy(
            update={
                "format": "lora" if low else "dense",
                "norms": {name: value**0.5 for name, value in squares.items()},
                "target_modules": sorted({module_of(name) for name in deltas}),
            }
        )

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
        return cls(deltas, _card(name, metadata or {}))

    @classmethod
    def from_contrast(
        cls,
        positive: Side,
        negative: Side,
        *,
        name: str,
        base: str | Path | Mapping[str, Tensor] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Direction":
        """Make the direction w = θ⁺ − θ⁻ of two fine-tunes of one base.

        Two LoRA adapters of ranks r⁺ and r⁻ give factors of rank r⁺ + r⁻, ``[B⁺, −B⁻] [A⁺; A⁻]``; nothing is
        multiplied out. Two checkpoints or state dicts give dense tensors.

        Args:
            positive: The fine-tune on the behaviour: a PEFT adapter folder, a checkpoint folder or file
                (safetensors), or a state dict.
            negative: The fine-tune on its opposite, of the same kind.
            name: Name under which it is watched.
            base: Their base model, from which the fingerprint is taken: a checkpoint folder, an id that the card
                notes, or a state dict. Default: what the adapters' settings name.
            metadata: Further fields of its ``Card``.

        Raises:
            WeightWatchError: The sides differ in kind, base, tensors or shapes; an adapter's change is not ``B A``;
                the sides are equal.
        """
        deltas, named, ranks = contrast(positive, negative)
        known = described(deltas, base, named, name)
        return cls(deltas, _card(name, {"ranks": ranks, **known, **(metadata or {})}))

    @classmethod
    def from_fine_tune(
        cls,
        fine_tuned: Side,
        base: str | Path | Mapping[str, Tensor] | None = None,
        *,
        name: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Direction":
        """Make a task vector: what one fine-tune did to its base, τ = θ_t − θ₀.

        Of a LoRA adapter it is ``B A``, in factors, and the base is looked at for its fingerprint only. Of a checkpoint
        in a folder it stays on disk: each tensor is the difference of two that are read when it is asked for.

        Args:
            fine_tuned: A PEFT adapter folder, a checkpoint folder or file (safetensors), or a state dict.
            base: The model that it started from. Default: what the adapter's settings name.
            name: Name under which it is listed.
            metadata: Further fields of its ``Card``.

        Raises:
            WeightWatchError: A checkpoint without its base; or see ``from_contrast``.
        """
        if is_adapter(fine_tuned):
            deltas, named, ranks = adapter_alone(Path(str(fine_tuned)))
            known = {"ranks": ranks, **described(deltas, base, named, name)}
            return cls(deltas, _card(name, {**known, **(metadata or {})}))
        if base is None:
            raise WeightWatchError(f"{name} is a full checkpoint: pass the base that it was fine-tuned from.")
        now, start = (_checkpoint(side) for side in (fine_tuned, base))
        if now is None or start is None:
            return cls.from_contrast(fine_tuned, base, base=base, name=name, metadata=metadata)
        difference = Difference(now, start)
        return cls(difference, _card(name, {**described(difference, start, None, name), **(metadata or {})}))

    @property
    def on_disk(self) -> bool:
        """Whether its tensors are read from disk each time they are asked for."""
        return self._stored is not None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self.deltas[name].shape) if self._stored is None else self._stored.shape(name)

    def part(self, name: str, box: Box) -> Tensor:
        """Return a part of a dense tensor; of a direction that is kept on disk, nothing else is read."""
        if self._stored is not None:
            return self._stored.read(name, box)
        delta = self.deltas[name]
        return delta.part(box) if isinstance(delta, LowRank) else delta[box]

    def __add__(self, other: "Direction") -> "Direction":
        from weightwatch.vectors.arithmetic import add

        return add(self, other)

    def __sub__(self, other: "Direction") -> "Direction":
        from weightwatch.vectors.arithmetic import subtract

        return subtract(self, other)

    def __mul__(self, factor: float) -> "Direction":
        from weightwatch.vectors.arithmetic import scale

        return scale(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> "Direction":
        return self * -1.0

    def validated(self, validation: Validation) -> "Direction":
        """Return the same direction with what applying it has shown."""
        known = copy(self)
        known.card = self.card.model_copy(update={"validation": validation})
        return known

    def as_control(self) -> "Direction":
        """Return the same direction as one of kind ``control``."""
        control = copy(self)
        control.card = self.card.model_copy(update={"kind": "control"})
        return control

    def without(self, names: Collection[str]) -> "Direction":
        """Return the same direction without some of its tensors; itself if it has none of them."""
        if self.deltas.keys().isdisjoint(names):
            return self
        rest = copy(self)
        rest.deltas = MappingProxyType(_Some(self.deltas, [k for k in self.deltas if k not in names]))
        rest.squares = MappingProxyType({k: value for k, value in self.squares.items() if k not in names})
        return rest

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write the direction to a folder.

        A low-rank direction becomes a PEFT adapter (``adapter_config.json``, ``adapter_model.safetensors``) of scaling
        one, which ``PeftModel.from_pretrained(base, folder)`` steers with; a dense one ``direction.safetensors`` under
        the base's parameter names. Beside it ``direction.json`` and a model card, ``README.md``.

        Args:
            folder: Made if it is not there.
            dtype: Stored precision. Default: as held. bf16 factors move a cosine by about 3e-6.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        low = {name: delta for name, delta in self.deltas.items() if isinstance(delta, LowRank)}
        stored = self
        with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            draft = Path(name)
            if len(low) == len(self.deltas):
                if dtype is not None:
                    low = {name: delta.to(delta.left.device, dtype) for name, delta in low.items()}
                    stored = Direction(low, self.card)
                write_adapter(draft, low, self.card.base)
            else:
                dense = {name: _dense(delta).to(dtype) for name, delta in self.deltas.items()}
                stored = Direction(dense, self.card) if low or dtype is not None else self
                save_file(
                    {name: t.clone(memory_format=torch.contiguous_format) for name, t in dense.items()}, draft / DENSE
                )
            written = {file.name for file in draft.iterdir()}
            for file in {CONFIG, WEIGHTS, DENSE} - written:  # of the other format, which was here before
                (folder / file).unlink(missing_ok=True)
            for file in written:
                (draft / file).replace(folder / file)
        stored.save_card(folder)
        return folder

    def save_card(self, folder: str | Path) -> None:
        """Write what is known about the direction, ``direction.json`` and the model card, beside its weights.

        Args:
            folder: Where the weights were saved. The model card shows the pictures (PNG) that lie there.
        """
        folder = Path(folder)
        pictures = sorted(picture.name for picture in folder.glob("*.png"))
        texts = {"README.md": self.card.markdown(pictures), CARD: self.card.model_dump_json(indent=1) + "\n"}
        for name, text in texts.items():
            draft = folder / f".{name}.part"
            draft.write_text(text, encoding="utf-8")
            draft.replace(folder / name)

    @classmethod
    def load(cls, source: str | Path, opener: Opener | None = None, *, revision: str | None = None) -> "Direction":
        """Load a stored direction.

        Args:
            source: Its folder, the name of a packaged direction (``evil``, ``sycophancy``, …), or its id on the Hub
                (``org/name``), from where it is downloaded once. A folder wins.
            opener: How its file is opened. If given, a dense direction stays on disk, and each of its tensors is read
                anew when it is asked for. Default: mapped into memory.
            revision: Branch, tag or commit of one on the Hub.

        Raises:
            WeightWatchError: Unknown name, missing or corrupt file, or weights whose norms are not those that
                ``direction.json`` states.
        """
        folder = find(source, revision)
        try:
            card = Card.model_validate_json((folder / CARD).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(str(part) for part in first["loc"])
            raise WeightWatchError(
                f"{folder / CARD} is not a direction's card ({where}: {first['msg']}). Save or copy it again."
            ) from error
        deltas: Mapping[str, Delta]
        if (folder / CONFIG).is_file():
            deltas = read_adapter(folder, read_config(folder), opener or Mapped)
        else:
            deltas = Checkpoint(folder, opener) if opener is not None else dict(Checkpoint(folder))
        direction = cls(deltas, card)
        for name in sorted({*card.norms, *direction.squares}):
            norm, held = card.norms.get(name, 0.0), direction.squares.get(name, 0.0) ** 0.5
            if abs(held - norm) > _NORM_TOLERANCE * max(norm, direction.norm * 1e-3):
                raise WeightWatchError(
                    f"{folder} is corrupt: {name} has norm {held:.6g} where {CARD} states {norm:.6g}. Copy it again."
                )
        return direction

    def require(self, base: Base, model: str) -> None:
        """Make sure that the direction belongs to a model.

        Args:
            base: The model's θ₀; see ``Fingerprint.mismatch``.
            model: How to call the model in the message.

        Raises:
            WeightWatchError: It was built from another base.
        """
        if self.card.fingerprint is None:
            _logger.warning(
                "weightwatch: direction %r has no fingerprint, so nothing tells whether %s is its base (%s).",
                self.name,
                model,
                self.card.base or "not named",
            )
            return
        difference = self.card.fingerprint.mismatch(base)
        if difference is None and all(base.shape(name) is None for name in self.card.fingerprint.shapes):
            _logger.warning(
                "weightwatch: the weights of %s are quantised, so that nothing tells whether it is the base of "
                "direction %r (%s). Pass reference= to have them compared.",
                model,
                self.name,
                self.card.base or "not named",
            )
        if difference:
            raise WeightWatchError(
                f"Direction {self.name!r} was built from {self.card.base or 'another model'}, not from {model}: "
                f"{difference}. Use a direction built from this model, or start from the direction's base."
            )


class _Some(Mapping[str, Delta]):
    """Some of the tensors of a mapping, which may read them only when they are asked for."""

    def __init__(self, every: Mapping[str, Delta], names: Collection[str]) -> None:
        self._every, self._names = every, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Delta:
        if name not in self._names:
            raise KeyError(name)
        return self._every[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _checkpoint(side: Side) -> Checkpoint | None:
    """Return the checkpoint that a side is, with a Hub id looked up in the cache; None for a state dict."""
    if isinstance(side, Mapping):
        return side if isinstance(side, Checkpoint) else None
    return Checkpoint(local_folder(str(side)) or side)


def _stored_square(stored: Checkpoint, name: str) -> float:
    """Return ‖w‖² of a tensor on disk, of which a part is read at a time."""
    flat = (stored.read(name, box).reshape(-1) for box in boxes(stored.shape(name), BLOCK))
    return sum(float(dot(part, part)) for part in flat if part.numel())


def _card(name: str, fields: Mapping[str, Any]) -> Card:
    try:
        return Card(**{**fields, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightWatchError(
            f"Direction {name!r}: metadata {where}: {first['msg']}. Known fields: {', '.join(Card.model_fields)}."
        ) from error


def _dense(delta: Delta) -> Tensor:
    return delta.dense() if isinstance(delta, LowRank) else delta
