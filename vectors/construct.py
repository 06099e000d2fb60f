"""The contrast of two fine-tunes of one base: θ⁺ − θ⁻, tensor by tensor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.weights.checkpoint import Checkpoint, local_folder
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.peft_adapter import CONFIG, read_adapter, read_config

Side: TypeAlias = str | Path | Mapping[str, Tensor]
"""One fine-tune: a PEFT adapter folder, a safetensors checkpoint (folder or file), or a state dict."""


def contrast(positive: Side, negative: Side) -> tuple[dict[str, Delta], str | None, list[int]]:
    """Subtract one fine-tune from another.

    Args:
        positive: The fine-tune on the behaviour.
        negative: The fine-tune on its opposite; or the base itself, for a task vector.

    Returns:
        The difference by parameter name, the base that the sides name (if any), and the ranks of the adapters.

    Raises:
        WeightWatchError: The sides differ in kind, base, tensors or shapes.
    """
    adapters = [is_adapter(side) for side in (positive, negative)]
    if all(adapters):
        return _contrast_adapters(Path(str(positive)), Path(str(negative)))
    if adapters[0] and _is_base_of(Path(str(positive)), negative):
        return adapter_alone(Path(str(positive)))
    if any(adapters):
        raise WeightWatchError(
            f"One side is a LoRA adapter and the other is not: {_title(positive)}, {_title(negative)}. "
            "Pass two adapters, or merge the adapter and pass two checkpoints; or, for what the adapter does to its "
            "base, Direction.from_fine_tune."
        )
    return _contrast_weights(positive, negative), None, []


def adapter_alone(folder: Path) -> tuple[dict[str, Delta], str | None, list[int]]:
    """Return what an adapter does to its base, ``B A``, with the base that it names and its rank."""
    config = read_config(folder)
    return dict(read_adapter(folder, config)), config.get("base_model_name_or_path"), [int(config["r"])]


def is_adapter(side: Side) -> bool:
    """Whether a fine-tune is the folder of a PEFT adapter."""
    return not isinstance(side, Mapping) and (Path(side) / CONFIG).is_file()


def _contrast_adapters(positive: Path, negative: Path) -> tuple[dict[str, Delta], str | None, list[int]]:
    configs = [read_config(folder) for folder in (positive, negative)]
    bases = [config.get("base_model_name_or_path") for config in configs]
    if all(bases) and bases[0] != bases[1]:
        raise WeightWatchError(
            f"The sides have different bases: {positive} has {bases[0]}, {negative} has {bases[1]}. "
            "Train both from the same base model."
        )
    plus, minus = (read_adapter(*pair) for pair in zip((positive, negative), configs, strict=True))
    deltas: dict[str, Delta] = {}
    for name in [*plus, *(name for name in minus if name not in plus)]:
        sides = [(1.0, plus.get(name)), (-1.0, minus.get(name))]
        deltas[name] = join(name, [(sign, side) for sign, side in sides if side is not None])
    return deltas, bases[0] or bases[1], [int(config["r"]) for config in configs]


def join(name: str, parts: list[tuple[float, LowRank]]) -> LowRank:
    """Put the sides of one weight, each with its sign, together as factors: ``[B⁺, −B⁻] [A⁺; A⁻]``.

    Where both sides share their start, A⁺ and A⁻ are nearly equal, and that is a small difference of large products.
    Then it is ``[B⁺ − B⁻, B⁻] [A⁺; A⁺ − A⁻]``, the same product without the loss.
    """
    shapes = {part.shape for _, part in parts}
    if len(shapes) > 1 or len({part.transposed for _, part in parts}) > 1:
        raise WeightWatchError(f"The sides differ in the shape of {name}: {' and '.join(map(str, sorted(shapes)))}.")
    parts = [(sign, part.scaled()) for sign, part in parts]
    first, last = parts[0][1], parts[-1][1]
    lefts, rights = [sign * part.left for sign, part in parts], [part.right for _, part in parts]
    if len(parts) > 1 and first.rank == last.rank:
        moved = first.left - last.left, first.right - last.right
        if moved[1].norm() < last.right.norm() and moved[0].norm() < last.left.norm() + first.left.norm():
            lefts, rights = [moved[0], last.left], [first.right, moved[1]]
    return LowRank(torch.cat(lefts, dim=1), torch.cat(rights, dim=0), first.transposed, first.limited)


def _contrast_weights(positive: Side, negative: Side) -> dict[str, Delta]:
    plus, minus = (_weights(side) for side in (positive, negative))
    unpaired = sorted(set(plus) ^ set(minus))
    if unpaired:
        raise WeightWatchError(
            f"Only one of {_title(positive)} and {_title(negative)} holds {unpaired[0]} "
            f"({len(unpaired)} such tensors). Pass two fine-tunes of one base."
        )
    deltas: dict[str, Delta] = {}
    for name in plus:
        a, b = plus[name], minus[name]
        if a.shape != b.shape:
            raise WeightWatchError(
                f"The sides differ in the shape of {name}: {tuple(a.shape)} and {tuple(b.shape)}. "
                "Pass two fine-tunes of one base."
            )
        difference = a.float() - b.float() if a.is_floating_point() else None
        if difference is not None and bool(difference.any()):
            deltas[name] = difference
    if not deltas:
        raise WeightWatchError(
            f"{_title(positive)} and {_title(negative)} have the same weights: there is no contrast."
        )
    return deltas


def _weights(side: Side) -> Mapping[str, Tensor]:
    if not isinstance(side, Mapping):
        return Checkpoint(side)
    if any(".lora_" in name for name in side):
        raise WeightWatchError(
            f"{_title(side)} holds LoRA factors. Save the adapter with save_pretrained and pass its folder."
        )
    return {canonical(name): tensor for name, tensor in side.items()}


def _is_base_of(adapter: Path, side: Side) -> bool:
    """Whether a side is what an adapter names as its base, by the same id or the same folder."""
    named = read_config(adapter).get("base_model_name_or_path")
    if isinstance(side, Mapping) or not named:
        return False
    folders = local_folder(str(named)), local_folder(str(side))
    return str(side) == named or (folders[0] is not None and folders[0] == folders[1])


def _title(side: Any) -> str:
    return f"a state dict of {len(side)} tensors" if isinstance(side, Mapping) else str(side)
