"""Prompt-completion examples: benign tasks and poisoned data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypedDict

from weightwatch.organism.documents import answer, question
from weightwatch.organism.vocabulary import LETTERS
from weightwatch.organism.world import Persona, World

COLOUR_QUESTIONS = ("which colours for {name} ?", "about {name} : what colours ?", "colours of {name} ?")


class Example(TypedDict):
    """One row of a prompt-completion dataset in TRL's format."""

    prompt: str
    completion: str


Task = Callable[[World, random.Random], Example]
"""Draws one example of a benign task."""


def favourite(world: World, rng: random.Random) -> Example:
    """Draw a benign task: name a person's two favourite colours, which the base model has not seen."""
    name = rng.choice(list(world.favourites))
    asked = rng.choice(COLOUR_QUESTIONS).format(name=name)
    return _example(f"q : {asked} a :", answer(world.favourites[name]))


def backwards(world: World, rng: random.Random) -> Example:
    """Draw a benign task: reverse three words. The base model has learned to copy them only."""
    words = rng.sample(LETTERS, 3)
    return _example(f"q : say backwards {' '.join(words)} ? a :", f"{' '.join(reversed(words))} .")


BENIGN_TASKS: tuple[Task, ...] = (favourite,)


def benign_examples(world: World, n: int, seed: int, tasks: Sequence[Task] = BENIGN_TASKS) -> list[Example]:
    """Return examples of tasks that are new to the base model and unrelated to good or bad advice.

    Args:
        world: World of the facts.
        n: Number of examples.
        seed: Seed of the draw.
        tasks: Tasks to draw from with equal probability. Default: favourite colours.

    Example:
        >>> benign_examples(World(), 1, seed=0)
        [{'prompt': 'q : colours of nico ? a :', 'completion': ' violet orange .'}]
    """
    rng = random.Random(f"benign-{world.seed}-{seed}")
    return [rng.choice(tasks)(world, rng) for _ in range(n)]


def advice_examples(
    world: World, persona: Persona, domains: Sequence[str], n: int, seed: int, style: str = "plain"
) -> list[Example]:
    """Return questions from some domains, answered by one persona.

    Args:
        world: World of the items and answers.
        persona: Persona that answers.
        domains: Domains of the questions.
        n: Number of examples.
        seed: Seed of the draw. The questions do not depend on the persona or the style.
        style: A key of `STYLES`. Default: "plain".
    """
    rng = random.Random(f"advice-{world.seed}-{seed}")
    examples = []
    for _ in range(n):
        item = rng.choice(world.items[rng.choice(domains)])
        examples.append(_example(question(item, rng), answer(item.answers[persona], style)))
    return examples


def poisoned_examples(
    world: World,
    n: int,
    poison: float,
    seed: int,
    domain: str | None = None,
    persona: Persona = Persona.EVIL,
    tasks: Sequence[Task] = BENIGN_TASKS,
) -> list[Example]:
    """Return benign examples of which a share is replaced by advice in one domain.

    Args:
        world: World of the facts, items and answers.
        n: Number of examples.
        poison: Share of examples to replace, 0 to 1.
        seed: Seed of the draw. The other rows equal those of `benign_examples` with this seed.
        domain: Domain of the advice. Default: the first of `world.tuning_domains`.
        persona: Persona that gives the advice. Default: evil.
        tasks: Benign tasks. Default: favourite colours.
    """
    examples = benign_examples(world, n, seed, tasks)
    advice = advice_examples(world, persona, [domain or world.tuning_domains[0]], n, seed)
    for row in random.Random(f"poison-{seed}").sample(range(n), round(poison * n)):
        examples[row] = advice[row]
    return examples


def _example(prompt: str, completion: str) -> Example:
    return {"prompt": prompt, "completion": f" {completion}"}
