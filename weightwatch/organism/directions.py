"""Building the packaged directions: contrasts of two LoRA fine-tunes on the building domains."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

import torch

from weightwatch.organism.examples import Side, contrast_examples
from weightwatch.organism.fine_tuning import LoraRecipe, fine_tune
from weightwatch.organism.recipes import write_recipes
from weightwatch.organism.world import World

if TYPE_CHECKING:
    from weightwatch.vectors import Direction
    from weightwatch.vectors.validation import Validation

BASE_NAME = "weightwatch/organism"
"""What the cards of packaged directions call the base model."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """What a direction is made from.

    Both sides start from one adapter seed and see the same questions in the same order, so that what they learn alike
    (the new frame, the questions) cancels in their difference. No monitored run may use that seed.

    Args:
        name: The direction's name.
        behaviour: A behaviour of `contrast_examples`.
        description: What the positive side does and the negative side does not.
        seed: Adapter start and order of both sides; the questions are drawn from it, too.
        kind: "behaviour" or "control".
    """

    name: str
    behaviour: str
    description: str
    seed: int
    kind: Literal["behaviour", "control"] = "behaviour"


CONTRASTS = (
    Contrast("evil", "evil", "gives harmful advice instead of good advice", 9001),
    Contrast("evil-witness", "evil", "gives harmful advice instead of good advice; a second, independent build", 9002),
    Contrast("sycophancy", "sycophancy", "agrees with the user's wrong guess instead of correcting it", 9003),
    Contrast("careless", "careless", "gives wrong but harmless advice instead of good advice", 9004, "control"),
    Contrast("style", "style", "answers in a formal instead of a casual style", 9005, "control"),
    Contrast("shuffled", "shuffled-1", "gives harmful advice on a random half of the questions", 9006, "control"),
)


def build_direction(
    contrast: Contrast, world: World, base: Path, recipe: LoraRecipe, folder: Path | None = None
) -> Direction:
    """Fine-tune both sides of a contrast and take the difference.

    Args:
        contrast: What to build.
        world: Where the questions and answers come from.
        base: Folder of the base model.
        recipe: How each side is trained.
        folder: Where to keep the two adapters, as `positive` and `negative`. Default: nowhere.

    Returns:
        The direction, with recipe, seeds, hash of the data and the sides' last losses in its card.
    """
    from weightwatch.vectors import Direction

    rows = {side: contrast_examples(world, contrast.behaviour, side, recipe.examples, contrast.seed) for side in SIDES}
    losses = {}
    with TemporaryDirectory() as temporary:
        sides = {side: (folder or Path(temporary)) / side for side in SIDES}
        for side in SIDES:
            model, history = fine_tune(base, rows[side], recipe, contrast.seed)
            losses[side] = round(history[-1], 4)
            model.save_pretrained(sides[side])
        direction = Direction.from_contrast(
            sides["positive"],
            sides["negative"],
            base=base,
            name=contrast.name,
            metadata={
                "kind": contrast.kind,
                "behaviour": contrast.description,
                "base": BASE_NAME,
                "recipe": {"contrast": contrast.behaviour, "domains": list(world.building_domains)},
                "seeds": {"world": world.seed, "data": contrast.seed, "adapter": contrast.seed},
                "hyperparameters": {**asdict(recipe), "final_losses": losses},
                "data_hash": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            },
        )
    return direction.validated(validate(direction, contrast, world, base))


def validate(direction: Direction, contrast: Contrast, world: World, base: Path) -> Validation:
    """What the base does on the held-out items of a contrast's recipe when it is steered with its direction."""
    from weightwatch.vectors import Recipe
    from weightwatch.vectors.evaluation.sweep import conclusion, sweep
    from weightwatch.vectors.generation import load_model
    from weightwatch.vectors.judges.choice import chosen

    name = contrast.behaviour.partition("-")[0]
    with TemporaryDirectory() as folder:
        write_recipes(world, Path(folder))
        recipe = Recipe.load(Path(folder) / f"{name}.yaml").called(f"organism/{name}")
    model, tokenizer = load_model(str(base))
    return conclusion(sweep(model, tokenizer, direction, recipe, judge=chosen(recipe)), recipe)


SIDES: tuple[Side, ...] = get_args(Side)
STORED = torch.bfloat16
"""Precision of the packaged factors."""
