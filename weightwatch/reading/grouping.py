"""The layer and the kind of module of each parameter, inferred from the names and sizes of all parameters.

A scan has only the names and sizes in a checkpoint, and must find the same layers as a live run. So the structure is
inferred from them, without a table of model families:

* Names that agree before their first index (``model.layers.0.…``, ``model.layers.1.…``) form a list. The list is a
  stack of blocks if a module path follows the index. A list of plain matrices (``altup_projections.0.weight``) is not.
* Lists with the same parent and the same indices, but without a common path, are pieces of the same blocks: XLM's
  ``attentions.3`` and ``ffns.3`` are both in layer 3.
* The stack of the language model is the main stack. An encoder, a vision tower or an audio tower is a further stack.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Layer: TypeAlias = int | str
"""``3`` in the main stack; prefix and index in a further stack: ``"encoder.block.3"``."""

Path: TypeAlias = tuple[str, ...]
_List: TypeAlias = dict[str, tuple[int, Path]]  # by parameter name: its first index, and the path after it

# Words in the names of modules that encode an input for the language model. Size is not enough: the encoder of Whisper
# turbo and the vision towers of GIT and PaddleOCR-VL have more elements than the text decoder.
_READERS = ("encoder", "vision", "visual", "image", "video", "audio", "speech")
_INDEX = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_LEAVES = {"weight", "bias"}


@dataclass(frozen=True)
class Groups:
    """The layer and the kind of module of each parameter, by parameter name."""

    layers: Mapping[str, Layer | None]
    """The layer; None outside the stacks (embeddings, head, projectors)."""
    kinds: Mapping[str, str]
    """The kind of module: ``q_proj``, ``mlp.c_proj``, ``model.visual.blocks.qkv``."""


def group(sizes: Mapping[str, int]) -> Groups:
    """Group parameters by layer and by kind of module.

    A kind is the shortest end of a module's path that no other module has: ``q_proj`` if there is one, but
    ``SelfAttention.q`` and ``EncDecAttention.q`` if there are two. Indices inside the path (experts) are left out; an
    index at its end stays: ``ffn.0`` and ``ffn.2`` are two modules of one ``Sequential``. Kinds of a further stack are
    unique within that stack and begin with its prefix.

    Args:
        sizes: Number of elements of each parameter, by its name in the plain model.

    Returns:
        The layer and the kind of each parameter.

    Example:
        >>> found = group({"model.layers.3.mlp.up_proj.weight": 64, "lm_head.weight": 16})
        >>> found.layers["model.layers.3.mlp.up_proj.weight"], list(found.kinds.values())
        (3, ['up_proj', 'lm_head'])
    """
    stacks = _stacks(sizes)
    main = _main({prefix: sum(sizes[name] for name in stack) for prefix, stack in stacks.items()})
    layers: dict[str, Layer | None] = dict.fromkeys(sizes)
    for prefix, stack in stacks.items():
        layers.update({name: index if prefix == main else f"{prefix}.{index}" for name, (index, _) in stack.items()})
    outside = {name: _module(name) or (name.partition(".")[0],) for name, layer in layers.items() if layer is None}
    inside = {name: path for name, (_, path) in stacks.get(main or "", {}).items()}
    # Kinds of the main stack don't depend on modules that a LoRA run may leave out: other modules get the longer names.
    kinds = _shortest(inside, _ends(inside) + Counter(outside.values()))
    kinds |= _shortest(outside, _ends(inside) + _ends(outside))
    for prefix in stacks.keys() - {main}:
        paths = {name: path for name, (_, path) in stacks[prefix].items()}
        kinds.update({name: f"{prefix}.{kind}" for name, kind in _shortest(paths, _ends(paths)).items()})
    return Groups(layers, {name: kinds[name] for name in sizes})


def split(layer: Layer) -> tuple[str, int]:
    """Return the prefix of a layer's stack (empty for the main stack) and its index there: the sort key of layers.

    Example:
        >>> split(3), split("encoder.block.3")
        (('', 3), ('encoder.block', 3))
    """
    prefix, _, index = str(layer).rpartition(".")
    return prefix, int(index)


def _stacks(sizes: Mapping[str, int]) -> dict[str, _List]:
    """Return the stacks by prefix. A stack of several lists has the prefix of the largest list."""
    lists: dict[str, _List] = {}
    blocks = set()
    for name in sizes:
        found = _INDEX.search(name)
        if found:
            prefix, rest = name[: found.start()], name[found.end() :]
            # A plain matrix has no path after the index: it has the name of its list.
            path = _module(rest) or (prefix.rpartition(".")[2] or found[1],)
            lists.setdefault(prefix, {})[name] = int(found[1]), path
            if "." in rest:
                blocks.add(prefix)
    stacks: dict[str, _List] = {}
    in_pieces = set()
    for prefix in sorted(blocks, key=lambda prefix: (-sum(sizes[name] for name in lists[prefix]), prefix)):
        piece = lists[prefix]
        whole = next((w for w in stacks if _beside(w, prefix, lists) and not _paths(stacks[w]) & _paths(piece)), prefix)
        stacks.setdefault(whole, {}).update(piece)
        in_pieces |= {whole} - {prefix}
    for prefix in lists.keys() - blocks:  # norms beside the pieces; other lists of plain modules are not stacks
        for whole in in_pieces:
            if _beside(whole, prefix, lists):
                stacks[whole].update(lists[prefix])
    return stacks


def _beside(one: str, other: str, lists: Mapping[str, _List]) -> bool:
    """Whether two lists have the same parent and the same indices."""
    indices = [{index for index, _ in lists[prefix].values()} for prefix in (one, other)]
    return indices[0] == indices[1] and one.rpartition(".")[0] == other.rpartition(".")[0]


def _paths(stack: _List) -> set[Path]:
    return {path for _, path in stack.values()}


def _main(sizes: Mapping[str, int]) -> str | None:
    """Return the prefix of the main stack: the language model's own.

    The search goes down the tree of modules. At each level it takes the module whose name has the fewest of the words
    in ``_READERS``, then the one with the most elements in the stacks below it.
    """
    below: Counter[Path] = Counter()
    for prefix, size in sizes.items():
        path = prefix.split(".")
        below.update({tuple(path[:depth]): size for depth in range(1, len(path) + 1)})

    def way(prefix: str) -> list[tuple[int, int, str]]:
        path = prefix.split(".")
        return [
            (sum(word in part.lower() for word in _READERS), -below[tuple(path[: depth + 1])], part)
            for depth, part in enumerate(path)
        ]

    return min(sizes, key=way, default=None)


def _module(name: str) -> Path:
    """Return the path of a parameter's module, without indices except one at its end."""
    parts = name.split(".")
    if parts[-1] in _LEAVES:
        parts.pop()
    path = [part for part in parts if not part.isdecimal()]
    if path and parts[-1].isdecimal():
        path[-1] += f".{parts[-1]}"
    return tuple(path)


def _ends(paths: Mapping[str, Path]) -> Counter[Path]:
    """Count the different paths that have each end."""
    return Counter(path[-length:] for path in set(paths.values()) for length in range(1, len(path) + 1))


def _shortest(paths: Mapping[str, Path], ends: Counter[Path]) -> dict[str, str]:
    """Return the shortest end of each path that occurs once; the whole path if there is none."""
    short = {
        path: next((path[-length:] for length in range(1, len(path)) if ends[path[-length:]] == 1), path)
        for path in set(paths.values())
    }
    return {name: ".".join(short[path]) for name, path in paths.items()}
