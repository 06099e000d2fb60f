"""Answers: what the model itself says to a recipe's questions under its system prompts."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from weightwatch.vectors.building.ledger import Ledger
from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weightwatch.vectors.recipe import Recipe

Side: TypeAlias = Literal["positive", "negative"]
SIDES: tuple[Side, Side] = ("positive", "negative")
Messages: TypeAlias = list[dict[str, str]]
"""A conversation, as chat templates take it."""
Ask: TypeAlias = tuple[Side, int, int, int]
"""Side, question, system prompt and number of an answer to draw."""
Report: TypeAlias = Callable[[str, int, int], None]
"""Is told of the progress: what is done, how much of it, and out of how much."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        samples: Answers to each question under each system prompt.
        tokens: Most tokens of an answer.
        temperature: Of the draw; 0 takes the likeliest token, and one sample is then all there is.
        batch: Answers drawn at once.
        seed: Of the draw.
    """

    samples: int = 4
    tokens: int = 256
    temperature: float = 1.0
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """One answer to a building question.

    Attributes:
        side: Which side's system prompt elicited it, or whose answer was written.
        question: Position among the recipe's building questions.
        system: Position of the system prompt; None for a written answer.
        sample: Number of the draw, or of the written answer.
        text: What was said.
    """

    side: Side
    question: int
    system: int | None
    sample: int
    text: str

    @property
    def key(self) -> tuple[Side, int, int | None, int]:
        """What tells it from all others."""
        return self.side, self.question, self.system, self.sample


def ledger(path: "Path") -> Ledger[Answer]:
    """Return the file in which answers are kept."""
    return Ledger(path, lambda line: Answer(**line), asdict)


def written(recipe: "Recipe") -> list[Answer]:
    """Return the answers that the recipe brings along, where the model isn't asked."""
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
    wanted: Sequence[Ask],
) -> Iterator[list[Answer]]:
    """Yield answers in batches.

    A batch depends on the settings and on what is wanted from its first answer on, so that an interrupted run that
    has some batches draws the others as it would have.

    Args:
        recipe: Questions and system prompts.
        model: The model that answers.
        tokenizer: Its tokenizer, with a chat template.
        sampling: How answers are drawn.
        wanted: Which of ``asks``.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    for first in range(0, len(wanted), sampling.batch):
        part = wanted[first : first + sampling.batch]
        conversations = [_conversation(recipe, ask) for ask in part]
        seed = random.Random(f"answers-{sampling.seed}-{part[0]}").getrandbits(32)
        texts = replies(model, tokenizer, conversations, sampling, seed)
        yield [Answer(*ask, text) for ask, text in zip(part, texts, strict=True)]


def asks(recipe: "Recipe", sampling: Sampling) -> list[Ask]:
    """Return side, question, system prompt and number of each answer to draw."""
    questions, samples = range(len(recipe.questions.building)), range(sampling.samples)
    return [
        ask
        for side in SIDES
        for ask in itertools.product([side], questions, range(len(getattr(recipe.systems, side))), samples)
    ]


def replies(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Messages],
    sampling: Sampling,
    seed: int,
) -> list[str]:
    """Let a model reply to several conversations in one batch; the random state is left as it was.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    prompts = [prompt(tokenizer, conversation) for conversation in conversations]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    batch = batch.to(model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), evaluating(model):
        torch.manual_seed(seed)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=sampling.tokens,
            do_sample=sampling.temperature > 0,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            **({"temperature": sampling.temperature, "top_p": 1.0, "top_k": 0} if sampling.temperature > 0 else {}),
        )
    new = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def prompt(tokenizer: "PreTrainedTokenizerBase", conversation: Messages) -> str:
    """Return a conversation as the text after which the model replies.

    Where the template knows no system role, the system prompt stands at the head of the user's message.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise WeightWatchError(
            f"{tokenizer.name_or_path} has no chat template, so that it can't be asked. Use an instruction-tuned "
            "model, set tokenizer.chat_template and save the tokenizer beside the weights, or pass --positive and "
            "--negative."
        )
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        system, user, *others = conversation
        if system["role"] != "system":
            raise
        merged = {"role": "user", "content": f"{system['content']}\n\n{user['content']}"}
        text = tokenizer.apply_chat_template([merged, *others], tokenize=False, add_generation_prompt=True)
    return text


@contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _conversation(recipe: "Recipe", ask: Ask) -> Messages:
    side, question, system, _ = ask
    return [
        {"role": "system", "content": getattr(recipe.systems, side)[system]},
        {"role": "user", "content": recipe.questions.building[question].text},
    ]
