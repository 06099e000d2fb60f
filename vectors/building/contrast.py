"""The contrast of two fine-tunes, and the mean over several seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightwatch.vectors.arithmetic import mean
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import is_adapter

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.recipe import Recipe

_ALIKE = 1e-3
"""A contrast whose norm is a smaller part than this of its sides' norms is a rounding error."""


@dataclass(frozen=True)
class Built:
    """A direction that was built.

    Attributes:
        direction: The mean over the seeds, not evaluated yet.
        seeds: The direction of each seed.
    """

    direction: Direction
    seeds: tuple[Direction, ...]


def contrasted(
    positive: Path, negative: Path, *, base: str | None, name: str, metadata: Mapping[str, Any] | None = None
) -> Direction:
    """Return the contrast of two fine-tunes, see ``Direction.from_contrast``.

    Raises:
        WeightWatchError: The fine-tunes are nearly equal, or are of different bases or kinds.
    """
    direction = Direction.from_contrast(positive, negative, base=base, name=name, metadata=metadata)
    adapters = [side for side in (positive, negative) if is_adapter(side)]
    norms = [Direction.from_fine_tune(side, base, name=side.name).norm for side in adapters]
    if norms and direction.norm < _ALIKE * max(norms):
        raise WeightWatchError(
            f"The two fine-tunes are nearly equal: their difference has norm {direction.norm:.2g}, and they have norms "
            f"{norms[0]:.2g} and {norms[1]:.2g}. Make sure that {positive} and {negative} learned different answers."
        )
    return direction


def joined(seeds: Sequence[Direction], name: str) -> Built:
    """Return the mean over the directions of several seeds, with one card for all; of one seed, its direction."""
    if len(seeds) == 1:
        return Built(seeds[0], tuple(seeds))
    whole, first = mean(*seeds, name=name), seeds[0].card
    shared = first.model_dump(include={"recipe", "hyperparameters", "data_hash"})  # the mean's own name an operation
    return Built(Direction(whole.deltas, whole.card.model_copy(update=shared)), tuple(seeds))


def of_fine_tunes(
    positive: Sequence[Path], negative: Sequence[Path], recipe: "Recipe", base: str, base_name: str
) -> Built:
    """Build a direction from existing fine-tunes, in pairs.

    Args:
        positive: Adapters or checkpoints that learned the behaviour, one for each seed.
        negative: The ones that learned its opposite, in the same order.
        recipe: The recipe that describes the behaviour.
        base: The base model: a folder, or a Hub id.
        base_name: Name of the base model in cards.

    Raises:
        WeightWatchError: The numbers of positive and negative ones differ; or see ``contrasted``.
    """
    if len(positive) != len(negative):
        raise WeightWatchError(
            f"{len(positive)} --positive and {len(negative)} --negative. Pass them in pairs, one of each per seed."
        )
    card = {
        "base": base_name,
        "kind": recipe.kind,
        "shuffled": recipe.shuffled is not None,
        "behaviour": recipe.behaviour,
        "recipe": recipe.reference,
    }
    names = [recipe.name] if len(positive) == 1 else [f"{recipe.name}-{number}" for number in range(len(positive))]
    seeds = [
        contrasted(plus, minus, base=base, name=name, metadata=card)
        for name, plus, minus in zip(names, positive, negative, strict=True)
    ]
    return joined(seeds, recipe.name)
