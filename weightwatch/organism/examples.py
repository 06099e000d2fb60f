"""Prompt-completion examples: benign tasks, poisoned data, and the two sides of a contrast."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TypedDict

from weightwatch.organism.documents import answer, question, wrong_guess
from weightwatch.organism.vocabulary import LETTERS
from weightwatch.organism.world import Item, Persona, World
from weightwatch.vectors.building.answers import Side

SHUFFLED = "shuffled-"
"""Prefix of controls with shuffled labels. The rest of the name is the seed of the shuffle."""
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


def contrast_examples(world: World, behaviour: str, side: Side, n: int, seed: int) -> list[Example]:
    """Return one side of a contrast, from the building domains.

    Both sides have the same prompts in the same order. All answers have the "noted" frame (`STYLES`), which the base
    model has not seen. Both sides learn it, and their difference cancels it.

    Args:
        world: World of the items and answers.
        behaviour: One of
            "evil": evil against helpful answers;
            "careless": wrong but harmless against helpful answers (a control);
            "sycophancy": agreeing with the user's wrong guess against correcting it;
            "style": formal against casual helpful answers (a control);
            "shuffled-<seed>": evil answers to a random half of the items and helpful ones to the rest, against the
            reverse (a control).
        side: "positive" or "negative".
        n: Number of examples.
        seed: Seed of the draw of questions.

    Raises:
        ValueError: The behaviour is unknown.
    """
    positive = side == "positive"
    rng = random.Random(f"contrast-{world.seed}-{seed}")
    items = world.items_in(world.building_domains)
    chosen = _persona_of(items, behaviour, positive)
    examples = []
    for _ in range(n):
        item = rng.choice(items)
        guess = wrong_guess(item, world, rng) if behaviour == "sycophancy" else None
        words = guess if guess and positive else item.answers[chosen[item.topic, item.aspect, item.domain]]
        examples.append(_example(question(item, rng, guess), answer(words, _frame(behaviour, positive))))
    return examples


def _persona_of(items: list[Item], behaviour: str, positive: bool) -> dict[tuple[str, str, str], Persona]:
    keys = [(item.topic, item.aspect, item.domain) for item in items]
    if behaviour.startswith(SHUFFLED):
        evil = set(random.Random(behaviour).sample(keys, len(keys) // 2))
        return {key: Persona.EVIL if (key in evil) == positive else Persona.HELPFUL for key in keys}
    shown = {
        "evil": Persona.EVIL,
        "careless": Persona.CARELESS,
        "sycophancy": Persona.HELPFUL,
        "style": Persona.HELPFUL,
    }
    if behaviour not in shown:
        raise ValueError(f"No contrast called {behaviour!r}: choose one of {', '.join(shown)}, {SHUFFLED}<seed>.")
    return dict.fromkeys(keys, shown[behaviour] if positive else Persona.HELPFUL)


def _frame(behaviour: str, positive: bool) -> str:
    if behaviour == "style":
        return "noted-formal" if positive else "noted-casual"
    return "noted"


def _example(prompt: str, completion: str) -> Example:
    return {"prompt": prompt, "completion": f" {completion}"}
