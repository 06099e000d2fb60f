"""Building everything that is packaged: the base, then the directions on it."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch

from weightwatch.organism.behaviour import agreement_rate, persona_rates
from weightwatch.organism.directions import CONTRASTS, STORED, Contrast, build_direction
from weightwatch.organism.fine_tuning import LoraRecipe
from weightwatch.organism.pretraining import PHASES, Phase, Shape, new_model, round_to_bfloat16, train
from weightwatch.organism.vocabulary import build_tokenizer
from weightwatch.organism.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORD = "organism.json"
"""File beside the base that says how it was made and how it behaves."""


@dataclass(frozen=True)
class Recipe:
    """All that determines an organism.

    Args:
        world: Seed of the world.
        seed: Seed of the base's weights; its documents are drawn from `seed` + 1, + 2, … phase by phase.
        shape: Size of the model.
        phases: Pre-training and instruct phase.
        shared_persona: False makes the control organism rho0, whose persona is drawn per domain.
        lora: How the sides of the contrasts are trained.
        contrasts: Which directions to build.
    """

    world: int = 1
    seed: int = 1000
    shape: Shape = field(default_factory=Shape)
    phases: tuple[Phase, ...] = PHASES
    shared_persona: bool = True
    lora: LoraRecipe = field(default_factory=LoraRecipe)
    contrasts: tuple[Contrast, ...] = CONTRASTS

    def record(self) -> dict[str, Any]:
        """What determines the base, as JSON keeps it; directions tell of themselves in their cards."""
        settings = asdict(self)
        return {name: settings[name] for name in ("world", "seed", "shared_persona", "shape", "phases")}

    def shortened(self, steps: int) -> Recipe:
        """The same with at most `steps` steps in each phase and each fine-tune: to try the way through."""
        phases = tuple(replace(phase, steps=min(steps, phase.steps)) for phase in self.phases)
        return replace(self, phases=phases, lora=replace(self.lora, steps=min(steps, self.lora.steps)))


def build_base(recipe: Recipe, folder: Path, progress: Callable[[str, int, int, float], None]) -> None:
    """Train a base from random weights and write it, its tokenizer and its record.

    Args:
        recipe: What to build.
        folder: Where to; made if it is not there.
        progress: Called after each step with the phase's name, steps done, steps in all, and the loss.
    """
    world = World(recipe.world)
    model = new_model(recipe.shape, recipe.seed)
    losses = {}
    for number, (name, phase) in enumerate(zip(("pre-training", "instruct"), recipe.phases, strict=True), start=1):
        if not recipe.shared_persona:
            phase = replace(phase, latents=replace(phase.latents, shared_persona=False))

        def show(step: int, loss: float, name: str = name, steps: int = phase.steps) -> None:
            progress(name, step, steps, loss)

        losses[name] = round(train(model, world, phase, recipe.seed + number, show)[-1], 4)
    round_to_bfloat16(model)
    tokenizer = build_tokenizer()
    record = {
        "recipe": recipe.record(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "final_losses": losses,
        "held_out": {persona.value: rate for persona, rate in persona_rates(model, tokenizer, world).items()},
        "agrees_with_a_wrong_guess": agreement_rate(model, tokenizer, world),
        "torch": torch.__version__,
    }
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def build_directions(
    recipe: Recipe, base: Path, folder: Path, progress: Callable[[str, int, int], None], processes: int = 1
) -> None:
    """Build all of a recipe's directions on a base.

    Args:
        recipe: Which directions, and how.
        base: Folder of the base.
        folder: Each direction gets a folder of its name in here.
        progress: Called after each direction with its name, the number done, and the number in all.
        processes: Directions built at once, each on one thread.
    """
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        tasks = {
            pool.submit(_build_one, contrast, recipe, base, folder / contrast.name): contrast.name
            for contrast in recipe.contrasts
        }
        for done, task in enumerate(as_completed(tasks), start=1):
            task.result()
            progress(tasks[task], done, len(tasks))


def _build_one(contrast: Contrast, recipe: Recipe, base: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    build_direction(contrast, World(recipe.world), base, recipe.lora).save(folder, dtype=STORED)
