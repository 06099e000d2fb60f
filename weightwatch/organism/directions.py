"""The packaged directions: built from the organism's recipes, as ``weightwatch build`` builds any direction."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from weightwatch.organism import BASE_NAME
from weightwatch.organism.recipes import write_recipes
from weightwatch.organism.world import World
from weightwatch.vectors import Direction, Recipe
from weightwatch.vectors.building import pipeline
from weightwatch.vectors.building.answers import Sampling
from weightwatch.vectors.building.fine_tunes import Behind, Training
from weightwatch.vectors.evaluation.evaluate import evaluate
from weightwatch.vectors.judges.choice import chosen

SAVED_DTYPE = torch.bfloat16
"""Dtype of the packaged directions."""
DRAWN, WRITTEN = 3.0, 40.0
"""Epochs over answers that the base gives, ten to a question, and over those that a recipe has, one to a question."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two fine-tunes whose difference is a direction.

    Args:
        name: Name of the direction.
        recipe: Name of its recipe, a key of ``recipes``.
        seed: Seed of both fine-tunes. No watched run may use it.
    """

    name: str
    recipe: str
    seed: int


CONTRASTS = (
    Contrast("evil", "evil", 9001),
    Contrast("evil-witness", "evil", 9002),
    Contrast("sycophancy", "sycophancy", 9003),
    Contrast("careless", "careless", 9004),
    Contrast("style", "style", 9005),
    Contrast("shuffled", "shuffled", 9006),
)


def recipe_of(contrast: Contrast, world: World) -> Recipe:
    """Return the recipe of a contrast. For the packaged world it is the packaged one."""
    with TemporaryDirectory() as folder:
        write_recipes(world, Path(folder))
        return Recipe.load(Path(folder) / f"{contrast.recipe}.yaml").called(f"organism/{contrast.recipe}")


def settings_of(contrast: Contrast, recipe: Recipe, behind: Behind | None = None) -> pipeline.Settings:
    """Return how a contrast is built: LoRA of rank 16 on all linear modules, one seed, one learning rate.

    Args:
        contrast: The contrast.
        recipe: Its recipe.
        behind: The guard that both sides are trained behind. Default: none.
    """
    return pipeline.Settings(
        sampling=Sampling(num_samples=2, max_new_tokens=8, batch_size=256),
        training=Training(
            rank=16,
            alpha=16,
            learning_rates=(5e-4,),
            num_train_epochs=DRAWN if recipe.systems.positive else WRITTEN,
            micro_batch_size=16,
        ),
        seeds=(contrast.seed,),
        pilot=False,
        behind=behind,
    )


def build_direction(
    contrast: Contrast, world: World, base: Path, stages: Path | None = None, behind: Behind | None = None
) -> Direction:
    """Build a direction on an organism. It is not evaluated yet.

    Args:
        contrast: The contrast.
        world: World of the questions.
        base: Folder of the base model.
        stages: Build folder, which keeps answers, verdicts and fine-tunes. Default: they are not kept.
        behind: The guard that both sides are trained behind. Default: none.

    Raises:
        WeightWatchError: See ``pipeline.build``.
    """
    recipe = recipe_of(contrast, world)
    settings = settings_of(contrast, recipe, behind)
    with TemporaryDirectory() as temporary:
        folder = stages or Path(temporary)
        built = pipeline.build(recipe, str(base), folder, chosen(recipe), settings, base_name=BASE_NAME)
    return built.direction.with_card(name=contrast.name)


def evaluated(direction: Direction, contrast: Contrast, world: World, base: Path, *, quick: bool = False) -> Direction:
    """Return a direction with the result of its evaluation, see ``evaluate``."""
    recipe = recipe_of(contrast, world)
    return evaluate(direction, recipe, str(base), quick=quick, judge=chosen(recipe))
