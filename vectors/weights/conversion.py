"""A checkpoint under the names that its parameters have in the model, where transformers stores them under others.

transformers renames on loading (``h.0`` is ``transformer.h.0``) and fuses: the experts of a layer are one tensor in the
model and many on disk. Its own tables say how; here they are applied to names and shapes alone, and values are read
from where they lie.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightwatch.vectors.weights.checkpoint import Checkpoint, Mapped, Opener
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.reader import Box

_logger = logging.getLogger("weightwatch")


def under_names(stored: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """Return a checkpoint that has tensors of some names, as far as transformers can tell them by these.

    Args:
        stored: A checkpoint as it lies on disk.
        names: Of parameters, as the model has them.

    Returns:
        The same checkpoint where it has all of them, or has no config that would say more.
    """
    if all(name in stored for name in names) or not (stored.path / "config.json").is_file():
        return stored
    try:
        with torch.random.fork_rng(devices=[]):
            return InModelNames(stored.path, Architecture(stored.path))
    except Exception as error:  # of code for this one model, or of a transformers that has changed
        _logger.warning(
            "weightwatch: %s lacks parameters of the model, and its config does not tell them by other names (%s).",
            stored.path,
            error,
        )
        return stored


def kind(folder: Path) -> Any:
    """Return the class of the model that a config describes.

    Raises:
        Exception: transformers does not know the model.
    """
    import transformers

    return getattr(transformers, transformers.AutoConfig.from_pretrained(folder).architectures[0])


class Architecture:
    """The model that a config describes, without weights.

    Args:
        folder: With a ``config.json``.

    Raises:
        Exception: transformers does not know the model, or its tables have changed.
    """

    def __init__(self, folder: Path) -> None:
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        with torch.device("meta"):
            model = kind(folder)(transformers.AutoConfig.from_pretrained(folder))
        changes = get_model_conversion_mapping(model)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        self._converters = [change for change in changes if isinstance(change, WeightConverter)]
        self._prefix = model.base_model_prefix

    def target(self, name: str) -> tuple[str, str | None, Any]:
        """Return the name in the model of a stored tensor, and of one that is fused, its pattern and converter."""
        from transformers.core_model_loading import rename_source_key

        found, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.shapes)
        converter = next((one for one in self._converters if pattern in one.source_patterns), None)
        return found, pattern, converter


@dataclass
class Fused:
    """How a tensor of the model is made of stored ones: stacked along its first axis, joined along another.

    Attributes:
        parts: Names of the stored tensors: for each part that is joined, what is stacked in it.
        axis: Along which parts are joined.
        stacked: Whether the stored tensors lack the first axis.
    """

    parts: list[list[str]] = field(default_factory=list)
    axis: int = 0
    stacked: bool = False


class InModelNames(Checkpoint):
    """The tensors of a checkpoint by their names in the model. What can't be told keeps its stored name.

    Args:
        path: As for ``Checkpoint``.
        model: The model that it belongs to.
        opener: How the files are opened.
    """

    def __init__(self, path: str | Path, model: Architecture, opener: Opener = Mapped) -> None:
        super().__init__(path, opener)
        self._fused: dict[str, Fused] = {}
        grouped: dict[str, dict[str | None, list[str]]] = {}
        converters: dict[str, Any] = {}
        for name in list(super().__iter__()):
            target, pattern, converter = model.target(name)
            grouped.setdefault(target, {}).setdefault(pattern, []).append(name)
            converters[target] = converter
        for target, patterns in grouped.items():
            made = _fused(patterns, converters[target])
            if made is not None and model.shapes.get(target) == self._shape_of(made):
                self._fused[canonical(target)] = made
            else:
                names = [name for several in patterns.values() for name in several]
                self._fused.update({name: Fused([[name]]) for name in names})

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, tuple(slice(0, size) for size in self.shape(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._fused)

    def __len__(self) -> int:
        return len(self._fused)

    def __contains__(self, name: object) -> bool:
        return name in self._fused

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._shape_of(self._fused[name]) or ()

    def dtype(self, name: str) -> str:
        """Return the element type of a tensor as the file names it."""
        return super().dtype(self._fused[name].parts[0][0])

    def read(self, name: str, box: Box) -> Tensor:
        """Read a part of a tensor, one slice for each dimension, and nothing else of it."""
        made = self._fused[name]
        if len(made.parts) == 1:
            return self._read_part(made.parts[0], made.stacked, box)
        found, first, wanted = [], 0, box[made.axis]
        for part in made.parts:
            last = first + self._part_shape(part, made.stacked)[made.axis]
            start, stop = max(first, wanted.start), min(last, wanted.stop)
            if start < stop:
                inside = (*box[: made.axis], slice(start - first, stop - first), *box[made.axis + 1 :])
                found.append(self._read_part(part, made.stacked, inside))
            first = last
        return found[0] if len(found) == 1 else torch.cat(found, made.axis)

    def places(self, name: str) -> list[tuple[str, Box]]:
        """Return the stored tensors that make a tensor, each with the part of it that it is."""
        made = self._fused[name]
        whole = [slice(0, size) for size in self.shape(name)]
        found, first = [], 0
        for part in made.parts:
            last = first + self._part_shape(part, made.stacked)[made.axis] if whole else first
            inside = [*whole[: made.axis], slice(first, last), *whole[made.axis + 1 :]] if whole else []
            if made.stacked:
                found += [(stored, (slice(i, i + 1), *inside[1:])) for i, stored in enumerate(part)]
            else:
                found.append((part[0], tuple(inside)))
            first = last
        return found

    def _read_part(self, names: Sequence[str], stacked: bool, box: Box) -> Tensor:
        if not stacked:
            return self._stored(names[0], box)
        several = [self._stored(name, box[1:]) for name in names[box[0]]]
        return several[0][None] if len(several) == 1 else torch.stack(several)

    def _stored(self, name: str, box: Box) -> Tensor:
        return super().read(name, box) if box else super().__getitem__(name)

    def _part_shape(self, names: Sequence[str], stacked: bool) -> tuple[int, ...]:
        inner = super().shape(names[0])
        return (len(names), *inner) if stacked else inner

    def _shape_of(self, made: Fused) -> tuple[int, ...] | None:
        """Return the shape of what is made; None where the parts don't fit."""
        if any(Checkpoint.shape(self, name) != Checkpoint.shape(self, part[0]) for part in made.parts for name in part):
            return None
        first, *rest = (self._part_shape(part, made.stacked) for part in made.parts)
        for shape in rest:
            if len(shape) != len(first) or any(
                a != b for axis, (a, b) in enumerate(zip(first, shape, strict=True)) if axis != made.axis
            ):
                return None
            first = (*first[: made.axis], first[made.axis] + shape[made.axis], *first[made.axis + 1 :])
        return first


def _fused(patterns: dict[str | None, list[str]], converter: Any) -> Fused | None:
    """Return how the stored tensors of one target make it; None where that is more than stacking and joining."""
    from transformers.core_model_loading import Concatenate, MergeModulelist, dot_natural_key

    if converter is None:
        names = [name for several in patterns.values() for name in several]
        return Fused([names]) if len(names) == 1 else None
    if len(converter.target_patterns) > 1 or set(patterns) != set(converter.source_patterns):
        return None
    parts = [sorted(patterns[pattern], key=dot_natural_key) for pattern in converter.source_patterns]
    match converter.operations:
        case [MergeModulelist(dim=0)] if len(parts) == 1:
            return Fused(parts, 0, True)
        case [MergeModulelist(dim=0), Concatenate(dim=axis)]:
            return Fused(parts, axis, True)
        case [Concatenate(dim=axis)] if all(len(part) == 1 for part in parts):
            return Fused(parts, axis)
    return None
