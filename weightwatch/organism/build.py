"""Building all that is packaged: the base model, then the directions on it."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import torch

from weightwatch.organism.behaviour import agreement_rate, persona_rates
from weightwatch.organism.directions import CONTRASTS, SAVED_DTYPE, Contrast, build_direction, evaluated
from weightwatch.organism.pretraining import PHASES, Phase, Shape, new_model, round_to_bfloat16, train
from weightwatch.organism.vocabulary import build_tokenizer
from weightwatch.organism.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORD = "organism.json"
"""File in the base model's folder with the settings of its build and the rates of its answers."""


@dataclass(frozen=True)
class OrganismSettings:
    """Settings that determine an organism: its world and its base model.

    Args:
        world: Seed of the world.
        seed: Seed of the base model's initial weights. Phase n draws its documents with `seed` + n.
        shape: Shape of the base model.
        phases: The pre-training and the instruct phase.
        shared_persona: Draw one persona for each document. False draws one for each domain of a document, which makes
            the control organism rho0.

    Example:
        >>> [phase.steps for phase in OrganismSettings().shortened(100).phases]
        [100, 80]
    """

    world: int = 1
    seed: int = 1000
    shape: Shape = field(default_factory=Shape)
    phases: tuple[Phase, Phase] = PHASES
    shared_persona: bool = True

    def record(self) -> dict[str, Any]:
        """Return the settings for `organism.json`."""
        return asdict(self)

    def shortened(self, steps: int) -> OrganismSettings:
        """Return the settings of a trial run.

        Args:
            steps: Maximum number of steps of each phase.
        """
        pre_training, instruct = (replace(phase, steps=min(steps, phase.steps)) for phase in self.phases)
        return replace(self, phases=(pre_training, instruct))


def build_base(settings: OrganismSettings, folder: Path, progress: Callable[[str, int, int, float], None]) -> None:
    """Train a base model from random weights. Write the model, its tokenizer and its record.

    Args:
        settings: Settings of the organism.
        folder: Output folder. Created if missing.
        progress: Called after each step with the name of the phase, the steps done, the total number of steps, and the
            loss.
    """
    world = World(settings.world)
    model = new_model(settings.shape, settings.seed)
    losses = {}
    for number, (name, phase) in enumerate(zip(("pre-training", "instruct"), settings.phases, strict=True), start=1):
        if not settings.shared_persona:
            phase = replace(phase, latents=replace(phase.latents, shared_persona=False))
        losses[name] = round(train(model, world, phase, settings.seed + number, partial(progress, name))[-1], 4)
    round_to_bfloat16(model)
    tokenizer = build_tokenizer()
    record = {
        "recipe": settings.record(),
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
    world: World, base: Path, folder: Path, progress: Callable[[str, int, int], None], processes: int
) -> None:
    """Build and evaluate the directions of all contrasts on a base model.

    Args:
        world: World of the base model.
        base: Folder of the base model.
        folder: Output folder. Each direction gets a subfolder of its name.
        progress: Called after each direction with its name, the number of directions done, and their total number.
        processes: Number of directions built in parallel, each on one thread.
    """
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        tasks = {
            pool.submit(_build_one, contrast, world, base, folder / contrast.name): contrast.name
            for contrast in CONTRASTS
        }
        for done, task in enumerate(as_completed(tasks), start=1):
            task.result()
            progress(tasks[task], done, len(tasks))


def _build_one(contrast: Contrast, world: World, base: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    direction = build_direction(contrast, world, base)
    evaluated(direction, contrast, world, base).save(folder, dtype=SAVED_DTYPE)
