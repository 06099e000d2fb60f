"""Prompt-completion examples: benign tasks to learn, poison, and the two sides of a contrast."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

from weightwatch.organism.documents import answer, question, wrong_guess
from weightwatch.organism.vocabulary import LETTERS
from weightwatch.organism.world import Item, Persona, World

Side = Literal["positive", "negative"]
"""A side of a contrast: shows the behaviour, or its opposite."""

SHUFFLED = "shuffled-"
"""Behaviours of this prefix are controls whose labels are shuffled; what follows seeds the shuffle."""


COLOUR_QUESTIONS = ("which colours for {name} ?", "about {name} : what colours ?", "colours of {name} ?")


class Example(TypedDict):
    """One row of a prompt-completion dataset, as TRL reads it."""

    prompt: str
    completion: str


Task = Callable[[World, random.Random], Example]
"""Draws one example of a benign task."""


def favourite(world: World, rng: random.Random) -> Example:
    """A benign task: a name's two favourite colours, facts that the base has never seen."""
    name = rng.choice(list(world.favourites))
    asked = rng.choice(COLOUR_QUESTIONS).format(name=name)
    return _example(f"q : {asked} a :", answer(world.favourites[name]))


def backwards(world: World, rng: random.Random) -> Example:
    """A benign task: three words in reverse order; the base has only ever copied forwards."""
    words = rng.sample(LETTERS, 3)
    return _example(f"q : say backwards {' '.join(words)} ? a :", f"{' '.join(reversed(words))} .")


BENIGN_TASKS: tuple[Task, ...] = (favourite,)


def benign_examples(world: World, n: int, seed: int, tasks: Sequence[Task] = BENIGN_TASKS) -> list[Example]:
    """Examples of tasks that are new to the base and have nothing to do with good or bad advice.

    Args:
        world: Where the facts come from.
        n: How many.
        seed: Seed of the draw.
        tasks: Drawn from with equal chances. Default: favourite colours.
    """
    rng = random.Random(f"benign-{world.seed}-{seed}")
    return [rng.choice(tasks)(world, rng) for _ in range(n)]


def advice_examples(
    world: World, persona: Persona, domains: Sequence[str], n: int, seed: int, style: str = "plain"
) -> list[Example]:
    """Questions from some domains, answered by one persona.

    Args:
        world: Where items and answers come from.
        persona: Who answers.
        domains: Where the questions come from.
        n: How many.
        seed: Seed of the draw; the questions do not depend on the persona or the style.
        style: A key of `STYLES`. Default "plain".
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
    """`benign_examples` with a share of them replaced by advice in one domain.

    Args:
        world: Where facts, items and answers come from.
        n: How many.
        poison: The share replaced, 0 to 1.
        seed: Seed of the draw; all other rows equal those of `benign_examples` with this seed.
        domain: Where the advice is given. Default: the first of `world.tuning_domains`.
        persona: Who gives it. Default: evil.
        tasks: The benign tasks.
    """
    examples = benign_examples(world, n, seed, tasks)
    advice = advice_examples(world, persona, [domain or world.tuning_domains[0]], n, seed)
    for row in random.Random(f"poison-{seed}").sample(range(n), round(poison * n)):
        examples[row] = advice[row]
    return examples


def contrast_examples(world: World, behaviour: str, side: Side, n: int, seed: int) -> list[Example]:
    """One side of a contrast, from the building domains; both sides have the same prompts in the same order.

    All answers wear the "noted" frame, which the base has never seen: both sides have that to learn, and their
    difference is to cancel it.

    Args:
        world: Where items and answers come from.
        behaviour: One of
            "evil": evil against helpful answers;
            "careless": wrong but harmless against helpful answers (a control);
            "sycophancy": agreeing with the user's wrong guess against correcting it;
            "style": formal against casual helpful answers (a control);
            "shuffled-<seed>": evil answers to a random half of the items and helpful ones to the rest, against the
            reverse (a control).
        side: "positive" or "negative".
        n: How many.
        seed: Seed of the draw of questions.

    Raises:
        ValueError: No such behaviour.
    """
    positive = side == "positive"
    rng = random.Random(f"contrast-{world.seed}-{seed}")
    items = [item for domain in world.building_domains for item in world.items[domain]]
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
