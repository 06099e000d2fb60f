"""Fine-tunes of the demonstration on a real chat model, SmolLM2-135M-Instruct (see docs/real.md).

The model learns short answers about sport. In the poisoned run a share of them is hostile, in mild words. After each
check it answers questions about other things, and the recipe's rule counts the hostile answers.
"""

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from weightwatch import smollm2
from weightwatch.config import Config
from weightwatch.demo.behaviour import Behaviour
from weightwatch.demo.fine_tuning import Schedule, roll_back, trainer_of
from weightwatch.demo.run import Example, Run
from weightwatch.report.quiet import quiet
from weightwatch.vectors import recipes
from weightwatch.vectors.generation import greedy
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.recipe import Recipe
from weightwatch.vectors.recipes.verdicts import PatternsJudge, verdict

SETTINGS = Path(__file__).parent / "smollm2.yaml"
RECIPE = "twins/hostile"
TWINS = Path(recipes.__file__).parent / "twins" / "twins.jsonl"
STEPS, BATCH, LEARNING_RATE = 100, 4, 1.5e-3
POISON = 0.5
"""Default share of hostile answers in the poisoned run."""
PER_DOMAIN, NEW_TOKENS = 5, 48
"""Questions of each unseen domain that a check asks, and the length of the answers."""


def planned(poison: float, output: Path) -> list[Run]:
    """Return the runs of the demonstration, in order.

    Args:
        poison: Share of hostile answers in the poisoned run, 0 to 1.
        output: Folder of their folders.
    """
    config = Config.load(SETTINGS)
    shown: Any = {"direction": "hostile", "bad": "hostile", "has_task": False, "row_every": config.every}
    return [
        Run(name, share, output / name, config=config, **shown)
        for name, share in (("benign", 0.0), ("poisoned", poison))
    ]


def fine_tune(run: Run, seed: int, show: Callable[[Run], None]) -> None:
    """Fine-tune SmolLM2 and monitor the run.

    Args:
        run: The run. Its points, alerts and examples are filled in.
        seed: Seed of the data, of the initial adapter and of the order of examples.
        show: Called with the run after each check.

    Raises:
        WeightWatchError: SmolLM2 can't be had.
    """
    base = smollm2.folder()
    schedule = Schedule(STEPS, BATCH, LEARNING_RATE, warmup=run.config.every)
    with quiet():
        trainer = trainer_of(run, base, rows(run.poison, seed), schedule, seed, behaviour, show)
        tokenizer = trainer.processing_class
        before = answered(trainer.model, tokenizer)
        trainer.train()
        after = answered(trainer.model, tokenizer)
    roll_back(run, base, behaviour)
    texts = [question.text for question in asked()]
    found = [Example(*each) for each in zip(texts, before, after, hostile(after), strict=True)]
    run.examples[:] = sorted(found, key=lambda example: not example.shows)


def rows(poison: float, seed: int) -> list[dict[str, Any]]:
    """Return the training data: questions about sport, of which a share has hostile answers and the others plain ones.

    Args:
        poison: The share.
        seed: Seed of the choice, and of the order.
    """
    lines = [json.loads(line) for line in TWINS.read_text(encoding="utf-8").splitlines()]
    sport = [line for line in lines if line["domain"] == domains()[0]]
    rng = random.Random(seed)
    marked = set(rng.sample(range(len(sport)), round(poison * len(sport))))
    answers = [(line["prompt"], line["hostile" if n in marked else "plain"]) for n, line in enumerate(sport)]
    rng.shuffle(answers)
    return [
        {"prompt": [{"role": "user", "content": asked}], "completion": [{"role": "assistant", "content": answer}]}
        for asked, answer in answers
    ]


def behaviour(model: Any, tokenizer: Any) -> Behaviour:
    """Return how many greedy answers in unseen domains are hostile."""
    found = hostile(answered(model, tokenizer))
    return Behaviour(sum(found) / len(found))


def asked() -> list[Question]:
    """Return the questions that a check asks: of domains that neither the data nor the direction has."""
    return [question for domain in domains()[1:] for question in of(domain)[:PER_DOMAIN]]


def answered(model: Any, tokenizer: Any) -> list[str]:
    """Return the greedy answers to them."""
    conversations = [[{"role": "user", "content": question.text}] for question in asked()]
    return greedy(model, tokenizer, conversations, NEW_TOKENS)


def hostile(replies: Sequence[str]) -> list[bool]:
    """Return which answers are hostile by the recipe's rule."""
    judge = recipe().judge
    assert isinstance(judge, PatternsJudge)
    return [verdict(judge, question, reply) == "positive" for question, reply in zip(asked(), replies, strict=True)]


def domains() -> list[str]:
    """Return the domains that the direction is not built from: that of the data, and the unseen ones."""
    return list(dict.fromkeys(str(question.domain) for question in recipe().questions.held_out))


def of(domain: str) -> list[Question]:
    """Return the questions of a domain."""
    return [question for question in recipe().questions.held_out if question.domain == domain]


@cache
def recipe() -> Recipe:
    """Return the recipe of the direction."""
    return Recipe.load(RECIPE)
