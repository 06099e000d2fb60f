"""A checkpoint under the parameter names of the model, where transformers saves tensors under other names.

transformers renames tensors on loading (``h.0`` is ``transformer.h.0``) and fuses them: the experts of a layer are one
tensor in the model and many on disk. Its own tables define how. Here they are applied to names and shapes only; values
are read from the files as they are.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.reader import Box, Opener, Unmapped

_logger = logging.getLogger("weightwatch")


def under_names(files: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """Return a checkpoint under the parameter names of its model, if it lacks some of them under its own.

    Args:
        files: A checkpoint under the names in its files.
        names: Names of parameters in the model.

    Returns:
        The same checkpoint if it has all of them, has no ``config.json``, or is of a model that transformers can't
        build.
    """
    if all(name in files for name in names) or not (files.path / "config.json").is_file():
        return files
    try:
        with torch.random.fork_rng(devices=[]):
            return InModelNames(files.path, Architecture(files.path))
    except Exception as error:  # of code for this one model, or of a transformers that has changed
        _logger.warning(
            "weightwatch: %s lacks parameters of the model, and transformers can't build the model of its config to "
            "find them under other names (%s).",
            files.path,
            error,
        )
        return files


def kind(folder: Path) -> Any:
    """Return the class of the model that a config describes.

    Raises:
        Exception: transformers does not know the model, or the config names code of its own, which is not run.
    """
    import transformers

    name = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).architectures[0]
    found = getattr(transformers, name)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(f"{name} is not a model of transformers")
    return found


class Architecture:
    """The model that a config describes, without weights.

    Args:
        folder: With a ``config.json``.

    Attributes:
        shapes: Shape of each tensor of its state dict.
        conv1d: Names of the weights of ``Conv1D`` modules, which are the transpose of a linear module's.
        tied: Names of tied weights, each with the name of the weight that it repeats.

    Raises:
        Exception: transformers does not know the model, or its tables have changed.
    """

    def __init__(self, folder: Path) -> None:
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            model = kind(folder)(transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False))
        changes = get_model_conversion_mapping(model)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.conv1d = frozenset(f"{path}.weight" for path, one in model.named_modules() if isinstance(one, Conv1D))
        self.tied: Mapping[str, str] = dict(model.all_tied_weights_keys)
        self._renamings = [change for change in changes if isinstance(change, WeightRenaming)]
        self._converters = [change for change in changes if isinstance(change, WeightConverter)]
        self._prefix = model.base_model_prefix

    def target(self, name: str) -> tuple[str, str | None, Any]:
        """Return a tensor's name in the model; for one that is fused, also its pattern and its converter."""
        from transformers.core_model_loading import rename_source_key

        found, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self.shapes)
        converter = next((one for one in self._converters if pattern in one.source_patterns), None)
        return found, pattern, converter


@lru_cache(8)
def architecture(folder: Path) -> Architecture | None:
    """Return the model that the config in a folder describes; None if there is none that transformers can build."""
    try:
        with torch.random.fork_rng(devices=[]):
            return Architecture(folder) if (folder / "config.json").is_file() else None
    except Exception:  # of code for this one model, or of a transformers that has changed
        return None


@dataclass
class Fused:
    """How tensors in the files make up one tensor of the model: stacked along its first axis, joined along another.

    Attributes:
        parts: Names of the tensors in the files: a list of stacked tensors for each part that is joined.
        axis: The axis along which parts are joined.
        stacked: Whether the tensors in the files lack the first axis.
    """

    parts: list[list[str]] = field(default_factory=list)
    axis: int = 0
    stacked: bool = False


class InModelNames(Checkpoint):
    """The tensors of a checkpoint by their names in the model. A tensor without a known name there keeps its own.

    Args:
        path: As for ``Checkpoint``.
        model: The architecture that it belongs to.
        opener: How the files are opened.
    """

    def __init__(self, path: str | Path, model: Architecture, opener: Opener = Unmapped) -> None:
        super().__init__(path, opener)
        self._fused: dict[str, Fused] = {}
        grouped: dict[str, dict[str | None, list[str]]] = {}
        converters: dict[str, Any] = {}
        for name in self:
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
        self._names = dict.fromkeys(self._fused)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, tuple(slice(0, size) for size in self.shape(name)))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._shape_of(self._fused[name]) or ()

    def dtype(self, name: str) -> str:
        """Return the element type of a tensor as safetensors names it."""
        return super().dtype(self._fused[name].parts[0][0])

    def read(self, name: str, box: Box) -> Tensor:
        """Read one box of a tensor, and nothing else of it."""
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
        """Return the tensors in the files that make up a tensor, each with its place in it."""
        made = self._fused[name]
        whole = [slice(0, size) for size in self.shape(name)]
        found, first = [], 0
        for part in made.parts:
            last = first + self._part_shape(part, made.stacked)[made.axis] if whole else first
            inside = [*whole[: made.axis], slice(first, last), *whole[made.axis + 1 :]] if whole else []
            if made.stacked:
                found += [(name, (slice(i, i + 1), *inside[1:])) for i, name in enumerate(part)]
            else:
                found.append((part[0], tuple(inside)))
            first = last
        return found

    def _read_part(self, names: Sequence[str], stacked: bool, box: Box) -> Tensor:
        if not stacked:
            return self._in_file(names[0], box)
        several = [self._in_file(name, box[1:]) for name in names[box[0]]]
        return several[0][None] if len(several) == 1 else torch.stack(several)

    def _in_file(self, name: str, box: Box) -> Tensor:
        return super().read(name, box)

    def _part_shape(self, names: Sequence[str], stacked: bool) -> tuple[int, ...]:
        inner = super().shape(names[0])
        return (len(names), *inner) if stacked else inner

    def _shape_of(self, made: Fused) -> tuple[int, ...] | None:
        """Return the shape of the whole; None if the parts don't fit together."""
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
    """Return how tensors in the files make up one target; None if that takes more than stacking and joining."""
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
