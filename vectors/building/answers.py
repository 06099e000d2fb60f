"""Answers of the base model to a recipe's questions under its system prompts."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import TypeAdapter

from weightwatch.vectors.building.ledger import Ledger
from weightwatch.vectors.generation import Messages, replies

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weightwatch.vectors.recipes.recipe import Recipe

Side: TypeAlias = Literal["positive", "negative"]
SIDES: tuple[Side, Side] = ("positive", "negative")
Ask: TypeAlias = tuple[Side, int, int, int]
"""What to sample: side, index of the question, index of the system prompt, index of the sample."""

_PILOT = 10  # answers of each side
_LONG = 40  # places of a side from which on a draw has a pilot


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        num_samples: Number of answers per question and system prompt.
        max_new_tokens: Maximum length of an answer.
        temperature: Sampling temperature; 0 decodes greedily, and then one sample is drawn.
        batch_size: Number of answers generated at once.
        seed: Seed of the sampling.
    """

    num_samples: int = 4
    max_new_tokens: int = 256
    temperature: float = 1.0
    batch_size: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer to a building question.

    Attributes:
        side: The side whose system prompt elicited it, or for which it was written.
        question: Index among the recipe's building questions.
        system: Index of the system prompt; None for a written answer.
        sample: Index of the sample, or of the written answer.
        text: The answer.
    """

    side: Side
    question: int
    system: int | None
    sample: int
    text: str

    @property
    def key(self) -> tuple[Side, int, int | None, int]:
        """What identifies the answer within a recipe."""
        return self.side, self.question, self.system, self.sample


def ledger(path: "Path") -> Ledger[Answer]:
    """Return the file of a build's answers."""
    return Ledger(path, TypeAdapter(Answer).validate_python, asdict)


def written(recipe: "Recipe") -> list[Answer]:
    """Return the written answers of a recipe without system prompts; of other recipes, none."""
    if recipe.systems.positive:
        return []
    return [
        Answer(side, number, None, sample, text)
        for side in SIDES
        for number, question in enumerate(recipe.questions.building)
        for sample, text in enumerate(getattr(question, side))
    ]


def drawn(
    recipe: "Recipe",
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sampling: Sampling,
    batches: Iterable[Sequence[Ask]],
) -> Iterator[list[Answer]]:
    """Sample the answers of each batch.

    The answers of a batch depend on the settings and on that batch only. So a run that resumes, or that draws more
    samples, draws the same answers as one uninterrupted run.

    Args:
        recipe: Questions and system prompts.
        model: The model that answers.
        tokenizer: Its tokenizer, with a chat template.
        sampling: How answers are sampled.
        batches: Some of the batches that ``asks`` returns.

    Yields:
        The answers of one batch.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    for batch in batches:
        texts = replies(
            model,
            tokenizer,
            [_conversation(recipe, ask) for ask in batch],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=random.Random(f"answers-{sampling.seed}-{batch[0]}").getrandbits(32),
        )
        yield [Answer(*ask, text) for ask, text in zip(batch, texts, strict=True)]


def asks(recipe: "Recipe", sampling: Sampling) -> list[list[Ask]]:
    """Return what to sample for a recipe, in batches, of which the first are those of ``pilot``."""
    places = [
        (side, question, system)
        for side in SIDES
        for question in range(len(recipe.questions.building))
        for system in range(len(getattr(recipe.systems, side)))
    ]
    samples = sampling.num_samples if sampling.temperature > 0 else 1
    batches = pilot(recipe, sampling)
    early = {ask for batch in batches for ask in batch}
    for sample in range(samples):  # the outer loop, so that more samples only add batches
        asked = [(*place, sample) for place in places]
        batches += _batched([ask for ask in asked if ask not in early], sampling.batch_size)
    return batches


def pilot(recipe: "Recipe", sampling: Sampling) -> list[list[Ask]]:
    """Return ten asks of each side, spread over questions and system prompts, in batches; none for a short draw."""
    questions = len(recipe.questions.building)
    systems = {side: len(getattr(recipe.systems, side)) for side in SIDES}
    if questions * min(systems.values()) < _LONG:
        return []
    asked: list[Ask] = [
        (side, number * questions // _PILOT, number % systems[side], 0) for side in SIDES for number in range(_PILOT)
    ]
    return _batched(asked, sampling.batch_size)


def _batched(asked: list[Ask], size: int) -> list[list[Ask]]:
    return [asked[first : first + size] for first in range(0, len(asked), size)]


def _conversation(recipe: "Recipe", ask: Ask) -> Messages:
    side, question, system, _ = ask
    return [
        {"role": "system", "content": getattr(recipe.systems, side)[system]},
        {"role": "user", "content": recipe.questions.building[question].text},
    ]
