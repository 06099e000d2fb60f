"""Which layer a parameter belongs to, and which kind of module: read off the names and sizes of all parameters at once.

An offline scan has no model to ask, only names and sizes, and a live run must come to the same parts. So the structure
is inferred from these, and no model family is looked up:

* Names that agree before their first index, ``model.layers.0.…``, ``model.layers.1.…``, are a list. It is a stack of
  blocks if a module path follows the index; a list of plain matrices (``altup_projections.0.weight``) is none.
* Lists under one parent that share their indices but no path are pieces of the same blocks: XLM's ``attentions.3`` and
  ``ffns.3`` make up its layer 3.
* One stack is the language model's own: the main one. An encoder, a vision or an audio tower is a further stack.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

Layer: TypeAlias = int | str
"""``3`` in the main stack; in a further one its prefix and the index: ``"encoder.block.3"``."""

Path: TypeAlias = tuple[str, ...]
_List: TypeAlias = dict[str, tuple[int, Path]]  # by parameter name: the first index in it, and the module beneath

# Words in the names of modules that read an input for the language model. Size alone does not tell: the encoder of
# Whisper turbo and the vision towers of GIT and PaddleOCR-VL hold more elements than the text decoder does.
_READERS = ("encoder", "vision", "visual", "image", "video", "audio", "speech")
_INDEX = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_LEAVES = {"weight", "bias"}


@dataclass(frozen=True)
class Groups:
    """The parts that parameters belong to, by parameter name."""

    layers: Mapping[str, Layer | None]
    """Their layers; None outside the stacks (embeddings, head, projectors)."""
    kinds: Mapping[str, str]
    """Their kinds of module: ``q_proj``, ``mlp.c_proj``, ``model.visual.blocks.qkv``."""


def group(sizes: Mapping[str, int]) -> Groups:
    """Find the layers and the kinds of module that parameters belong to.

    A kind is the shortest end of the path to a module that no other module shares: ``q_proj`` where there is one,
    ``SelfAttention.q`` and ``EncDecAttention.q`` where there are two. Indices along the path (experts) are left out,
    but for one at its very end: ``ffn.0`` and ``ffn.2`` are two layers of one ``Sequential``. Kinds of a further stack
    are told apart within it and begin with its prefix.

    Args:
        sizes: Number of elements of each parameter, by its name in the plain model.

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
    # Those of the main stack depend on nothing that a LoRA run may leave out: other modules give way to them.
    kinds = _shortest(inside, _ends(inside) + Counter(outside.values()))
    kinds |= _shortest(outside, _ends(inside) + _ends(outside))
    for prefix in stacks.keys() - {main}:
        paths = {name: path for name, (_, path) in stacks[prefix].items()}
        kinds.update({name: f"{prefix}.{kind}" for name, kind in _shortest(paths, _ends(paths)).items()})
    return Groups(layers, {name: kinds[name] for name in sizes})


def split(layer: Layer) -> tuple[str, int]:
    """Return the prefix of a layer's stack, empty for the main one, and its index there. Layers sort by it.

    Example:
        >>> split(3), split("encoder.block.3")
        (('', 3), ('encoder.block', 3))
    """
    prefix, _, index = str(layer).rpartition(".")
    return prefix, int(index)


def _stacks(sizes: Mapping[str, int]) -> dict[str, _List]:
    """Return the stacks by prefix; one that several lists make up, by that of the largest."""
    lists: dict[str, _List] = {}
    blocks = set()
    for name in sizes:
        found = _INDEX.search(name)
        if found:
            prefix, rest = name[: found.start()], name[found.end() :]
            # What is plain has no path of its own: it goes by the name of its list.
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
    for prefix in lists.keys() - blocks:  # beside pieces, norms too; elsewhere lists of plain layers are no blocks
        for whole in in_pieces:
            if _beside(whole, prefix, lists):
                stacks[whole].update(lists[prefix])
    return stacks


def _beside(one: str, other: str, lists: Mapping[str, _List]) -> bool:
    """Whether two lists have one parent and the same indices."""
    indices = [{index for index, _ in lists[prefix].values()} for prefix in (one, other)]
    return indices[0] == indices[1] and one.rpartition(".")[0] == other.rpartition(".")[0]


def _paths(stack: _List) -> set[Path]:
    return {path for _, path in stack.values()}


def _main(sizes: Mapping[str, int]) -> str | None:
    """Return the prefix of the language model's own stack: the way down the modules that leads to it.

    At each parting the way is the module whose name has the fewest words for readers of an input, then the one with
    the most elements in stacks beneath it.
    """
    beneath: Counter[Path] = Counter()
    for prefix, size in sizes.items():
        path = prefix.split(".")
        beneath.update({tuple(path[:depth]): size for depth in range(1, len(path) + 1)})

    def way(prefix: str) -> list[tuple[int, int, str]]:
        path = prefix.split(".")
        return [
            (sum(word in part.lower() for word in _READERS), -beneath[tuple(path[: depth + 1])], part)
            for depth, part in enumerate(path)
        ]

    return min(sizes, key=way, default=None)


def _module(name: str) -> Path:
    """Return the path to the module that holds a parameter: without indices, but with one that ends it."""
    parts = name.split(".")
    if parts[-1] in _LEAVES:
        parts.pop()
    path = [part for part in parts if not part.isdecimal()]
    if path and parts[-1].isdecimal():
        path[-1] += f".{parts[-1]}"
    return tuple(path)


def _ends(paths: Mapping[str, Path]) -> Counter[Path]:
    """Count in how many different paths each end of one occurs."""
    return Counter(path[-length:] for path in set(paths.values()) for length in range(1, len(path) + 1))


def _shortest(paths: Mapping[str, Path], ends: Counter[Path]) -> dict[str, str]:
    """Return the shortest end of each path that occurs once; all of it where another ends in it."""
    short = {
        path: next((path[-length:] for length in range(1, len(path)) if ends[path[-length:]] == 1), path)
        for path in set(paths.values())
    }
    return {name: ".".join(short[path]) for name, path in paths.items()}
