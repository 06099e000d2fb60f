"""Evaluation of a direction: a sweep on its base model, and its cosines with other directions."""

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from weightwatch.vectors.arithmetic import cosine
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.evaluation.sweep import conclusion, require_coefficients, sweep
from weightwatch.vectors.generation import load_model
from weightwatch.vectors.recipes.recipe import Recipe, packaged_recipes
from weightwatch.vectors.weights.sources import is_hub_id, local_folder

if TYPE_CHECKING:
    from weightwatch.vectors.generation import Progress
    from weightwatch.vectors.judges.judge import Judge

_logger = logging.getLogger("weightwatch")


def evaluate(
    direction: Direction,
    recipe: Recipe,
    model: str,
    *,
    coefficients: Sequence[float] | None = None,
    quick: bool = False,
    judge: "Judge | None" = None,
    seeds: Sequence[Direction] = (),
    others: Sequence[Direction] = (),
    progress: "Progress | None" = None,
    trust_remote_code: bool = False,
) -> Direction:
    """Measure what a direction does to its base model.

    Args:
        direction: The direction w.
        recipe: The recipe whose held-out items are asked.
        model: The base model θ₀: a folder, or a Hub id.
        coefficients: The coefficients k of θ₀ + k·w.
        quick: Whether to ask less, see ``Extent.of``.
        judge: Rates the replies to the held-out questions. Default: those questions are not asked.
        seeds: The directions of single seeds, whose cosines with each other are measured.
        others: Directions to compare with, such as controls.
        progress: Called after each coefficient.
        trust_remote_code: Whether to run the Python code that comes with the base model.

    Returns:
        The direction with the result in its card. Cosines that the card has already, of seeds or of other directions,
        are kept unless they are measured again.

    Raises:
        WeightWatchError: The model or its chat template is missing, the direction does not belong to it, the
            coefficients can't decide whether the direction passes, or one of ``others`` is of another base.
    """
    if coefficients is not None:
        require_coefficients(coefficients, recipe)
    numbered = [(str(seed.card.seeds.get("adapter", number)), seed) for number, seed in enumerate(seeds, 1)]
    pairs = {f"{a}, {b}": round(cosine(one, other), 4) for (a, one), (b, other) in combinations(numbered, 2)}
    near = {other.name: round(cosine(direction, other), 4) for other in others}
    loaded, tokenizer = load_model(model, trust_remote_code=trust_remote_code)
    points = sweep(loaded, tokenizer, direction, recipe, coefficients, judge, progress, quick=quick)
    found = conclusion(points, recipe, quick=quick)
    known = direction.card.validation
    if known is not None:  # a saved direction no longer has its seeds apart
        pairs, near = {**known.seeds, **pairs}, {**known.others, **near}
    return direction.validated(found.model_copy(update={"seeds": pairs, "others": near}))


def recorded(
    direction: Direction, base: str | None, recipe: str | None, stages: Path | None = None
) -> tuple[str, Recipe]:
    """Return the base model and the recipe to evaluate a saved direction with.

    Warns if the recorded recipe has changed since, because its items may then be among what was learned.

    Args:
        direction: The direction.
        base: The base model. Default: the one that the card names.
        recipe: Name or path of the recipe. Default: the one of the last evaluation, or else of the build.
        stages: The build folder, which has the recipe of a file of pairs. Default: none is looked at.

    Raises:
        WeightWatchError: Neither an argument nor the card names a base or a recipe, or what the card names is not here.
    """
    known = direction.card.validation
    given, stated = base, known.recipe if known else direction.card.recipe
    base, named = given or direction.card.base, recipe or stated.get("name")
    if not base or not named:
        raise WeightWatchError(
            f"The card of direction {direction.name!r} names no {'recipe' if base else 'base model'} to evaluate it "
            f"with. Pass {'--recipe' if base else '--model'}."
        )
    kept = stages / named if stages is not None and recipe is None else None
    named = str(kept) if kept is not None and kept.is_file() else named
    elsewhere = "which is not here: a card has no paths, and this one was built elsewhere or from another folder"
    if given is None and not is_hub_id(base) and local_folder(base) is None:
        raise WeightWatchError(
            f"The card of direction {direction.name!r} names the base {base!r}, {elsewhere}. Pass --model."
        )
    if recipe is None and named not in packaged_recipes() and not Path(named).is_file():
        raise WeightWatchError(
            f"The card of direction {direction.name!r} names the recipe {named!r}, {elsewhere}. Pass --recipe."
        )
    wanted = Recipe.load(named)
    if recipe is None and wanted.digest != stated.get("digest"):
        _logger.warning(
            "weightwatch: recipe %s has changed since direction %r was built or evaluated. Make sure that none of its "
            "evaluation items is among the building questions of the earlier version.",
            named,
            direction.name,
        )
    return base, wanted


def load_controls(names: Sequence[str]) -> list[Direction]:
    """Load directions to compare with.

    Raises:
        WeightWatchError: One does not exist, or two have the same name.
    """
    found = [Direction.load(name) for name in names]
    titles = [direction.name for direction in found]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise WeightWatchError(f"Two controls have the name {twice!r}. Pass directions of different names.")
    return found
