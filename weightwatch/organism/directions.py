"""The packaged directions: contrasts of two LoRA fine-tunes on the building domains."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch

from weightwatch.organism.examples import contrast_examples
from weightwatch.organism.fine_tuning import Begin, LoraSettings, fine_tune
from weightwatch.organism.recipes import BEHAVIOURS, write_recipes
from weightwatch.organism.world import World
from weightwatch.vectors import Direction, Recipe
from weightwatch.vectors.building.answers import SIDES
from weightwatch.vectors.evaluation.sweep import conclusion, sweep
from weightwatch.vectors.generation import load_model
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.validation import Validation

BASE_NAME = "weightwatch/organism"
"""Name of the base model in the cards of the packaged directions."""
SAVED_DTYPE = torch.bfloat16
"""Dtype of the packaged directions."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two fine-tunes whose difference is a direction.

    Both sides have the same seed: the same initial adapter, and the same questions in the same order. What both learn
    (the new frame, the questions) therefore cancels in their difference. No monitored run may use this seed.

    Args:
        name: Name of the direction.
        behaviour: Behaviour, as `contrast_examples` names it.
        description: What the positive side does and the negative side does not.
        seed: Seed of the questions, of the initial adapter and of the order of examples.
        kind: "behaviour" or "control".
    """

    name: str
    behaviour: str
    description: str
    seed: int
    kind: Literal["behaviour", "control"] = "behaviour"


CONTRASTS = (
    Contrast("evil", "evil", BEHAVIOURS["evil"], 9001),
    Contrast("evil-witness", "evil", f"{BEHAVIOURS['evil']}; a second, independent build", 9002),
    Contrast("sycophancy", "sycophancy", BEHAVIOURS["sycophancy"], 9003),
    Contrast("careless", "careless", BEHAVIOURS["careless"], 9004, "control"),
    Contrast("style", "style", "answers in a formal instead of a casual style", 9005, "control"),
    Contrast("shuffled", "shuffled-1", "gives harmful advice on a random half of the questions", 9006, "control"),
)


def build_direction(
    contrast: Contrast,
    world: World,
    base: Path,
    settings: LoraSettings,
    folder: Path | None = None,
    evaluated: int | None = None,
    begin: Begin | None = None,
) -> Direction:
    """Fine-tune both sides of a contrast, take their difference and evaluate it.

    Args:
        contrast: Contrast to build.
        world: World of the questions and answers.
        base: Folder of the base model.
        settings: Training settings of each side.
        folder: Folder in which to keep the two adapters, as `positive` and `negative`. Default: they are not kept.
        evaluated: Number of items, neutral tasks and held-out questions that evaluate it. Default: all.
        begin: Begins to watch each fine-tune, or to guard it. Default: nothing does.

    Returns:
        The direction. Its card has the recipe, the seeds, the hash of the data, the final losses and the evaluation.
    """
    rows = {
        side: contrast_examples(world, contrast.behaviour, side, settings.examples, contrast.seed) for side in SIDES
    }
    losses = {}
    with TemporaryDirectory() as temporary:
        sides = {side: (folder or Path(temporary)) / side for side in SIDES}
        for side in SIDES:
            model, history = fine_tune(base, rows[side], settings, contrast.seed, begin)
            losses[side] = round(history[-1], 4)
            model.save_pretrained(sides[side])
        direction = Direction.from_contrast(
            sides["positive"],
            sides["negative"],
            base=base,
            name=contrast.name,
            metadata={
                "kind": contrast.kind,
                "shuffled": contrast.behaviour.startswith("shuffled"),
                "behaviour": contrast.description,
                "base": BASE_NAME,
                "recipe": {"contrast": contrast.behaviour, "domains": list(world.building_domains)},
                "seeds": {"world": world.seed, "data": contrast.seed, "adapter": contrast.seed},
                "hyperparameters": {**asdict(settings), "final_losses": losses},
                "data_hash": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            },
        )
    return direction.validated(evaluate(direction, contrast, world, base, evaluated))


def evaluate(direction: Direction, contrast: Contrast, world: World, base: Path, most: int | None = None) -> Validation:
    """Steer the base model with a direction and measure its answers to held-out items of the recipe.

    Args:
        direction: The direction.
        contrast: What it was built of.
        world: World of the questions and answers.
        base: Folder of the base model.
        most: Number of items, of neutral tasks and of held-out questions that are asked. Default: all.
    """
    name = contrast.behaviour.partition("-")[0]
    with TemporaryDirectory() as folder:
        write_recipes(world, Path(folder))
        recipe = Recipe.load(Path(folder) / f"{name}.yaml").called(f"organism/{name}")
    asked = recipe.model_copy(
        update={
            "evaluation": recipe.evaluation[:most],
            "questions": recipe.questions.model_copy(update={"held_out": recipe.questions.held_out[:most]}),
            "neutral": recipe.neutral.model_copy(update={"tasks": recipe.neutral.tasks[:most]}),
        }
    )
    model, tokenizer = load_model(str(base))
    return conclusion(sweep(model, tokenizer, direction, asked, judge=chosen(recipe)), recipe)
