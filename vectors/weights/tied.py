"""Tied heads: the tensors outside the layers of a checkpoint that repeat another one.

A model with tied embeddings has one weight for both. transformers saves it once; other savers write it twice.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from weightwatch.vectors.precision import BLOCK
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import architecture
from weightwatch.vectors.weights.names import indexed
from weightwatch.vectors.weights.reader import FLOATS, Box, boxes

_EMBEDDING = re.compile(r"emb|wte|word", re.IGNORECASE)


class Tensors(Protocol):
    """Tensors by name of which shapes and parts can be read, such as a ``Checkpoint``."""

    def __iter__(self) -> Iterator[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        ...

    def read(self, name: str, box: Box) -> Tensor:
        """Read one box of a tensor."""
        ...


def copies(tensors: Tensors) -> dict[str, str]:
    """Return the names of matrices outside the layers that repeat another one, each with the name of that one.

    Two matrices are copies if they have the same precision and values, not all of them zero. They are compared block by
    block, up to the first block that differs. There are no copies if the ``config.json`` of a checkpoint states
    ``tie_word_embeddings: false``.

    Args:
        tensors: A checkpoint, or θ₀ from another source. Of several copies, the one that is named like an embedding
            counts as the original.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, shape in _matrices(tensors).items():
        if not isinstance(tensors, Checkpoint) or tensors.dtype(name) in FLOATS:
            alike.setdefault(shape, []).append(name)
    found: dict[str, str] = {}
    for names in alike.values() if _may_tie(tensors) else ():
        names.sort(key=lambda name: (_EMBEDDING.search(name) is None, name))
        for i, name in enumerate(names):
            originals = (other for other in names[:i] if other not in found)
            original = next((other for other in originals if _equal(tensors, name, other)), None)
            if original is not None:
                found[name] = original
    return found


def embeddings(tensors: Tensors, shape: tuple[int, ...]) -> list[str]:
    """Return the matrices outside the layers to which an unsaved head of a shape may be tied."""
    return [name for name, other in _matrices(tensors).items() if other == shape] if _may_tie(tensors) else []


def unsaved_heads(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the names of tied heads that a checkpoint does not save, each with the name of the embedding.

    The model of the checkpoint's config tells what is tied. If transformers can't build it, any head of the shape of an
    embedding may be.

    Args:
        tensors: The checkpoint.
        shapes: Shapes of tensors by name, such as those of a direction.
    """
    saved = set(tensors)
    missing = [name for name in shapes if not indexed(name) and name not in saved]
    model = architecture(tensors.path) if missing and isinstance(tensors, Checkpoint) else None
    found = {}
    for name in missing:
        alike = embeddings(tensors, shapes[name])
        original = model.tied.get(name, "") if model is not None else ""
        if alike and (model is None or original):
            found[name] = original if original in alike else alike[0]
    return found


def _matrices(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    shapes = {name: tensors.shape(name) for name in tensors if not indexed(name)}
    return {name: shape for name, shape in shapes.items() if len(shape) == 2}


def _may_tie(tensors: Tensors) -> bool:
    """Whether no config states that the model's head is a separate weight."""
    try:
        config = json.loads((tensors.path / "config.json").read_text()) if isinstance(tensors, Checkpoint) else {}
    except (OSError, ValueError, RecursionError):
        return True
    return not (isinstance(config, dict) and config.get("tie_word_embeddings") is False)


def _equal(tensors: Tensors, one: str, other: str) -> bool:
    """Whether two tensors of one shape have the same precision and values, not all of them zero."""
    nonzero = False
    for box in boxes(tensors.shape(one), BLOCK):
        a, b = tensors.read(one, box), tensors.read(other, box)
        if a.dtype != b.dtype or not torch.equal(a, b):
            return False
        nonzero = nonzero or bool(a.any())
    return nonzero
