"""Answers: what the model itself says to a recipe's questions under its system prompts."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from weightwatch.vectors.building.ledger import Ledger
from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weightwatch.vectors.recipes.recipe import Recipe

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
    batches: Iterable[Sequence[Ask]],
) -> Iterator[list[Answer]]:
    """Yield the answers of each batch.

    They depend on the settings and on their own batch only, so that a run that goes on, or draws more samples, draws
    what it would have drawn in one go.

    Args:
        recipe: Questions and system prompts.
        model: The model that answers.
        tokenizer: Its tokenizer, with a chat template.
        sampling: How answers are drawn.
        batches: Which of ``asks``.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    for batch in batches:
        conversations = [_conversation(recipe, ask) for ask in batch]
        seed = random.Random(f"answers-{sampling.seed}-{batch[0]}").getrandbits(32)
        texts = replies(model, tokenizer, conversations, sampling, seed)
        yield [Answer(*ask, text) for ask, text in zip(batch, texts, strict=True)]


def asks(recipe: "Recipe", sampling: Sampling) -> list[list[Ask]]:
    """Return side, question, system prompt and number of each answer to draw, in the batches to draw them in."""
    places = [
        (side, question, system)
        for side in SIDES
        for question in range(len(recipe.questions.building))
        for system in range(len(getattr(recipe.systems, side)))
    ]
    samples = sampling.samples if sampling.temperature > 0 else 1
    return [
        [(*place, sample) for place in places[first : first + sampling.batch]]
        for sample in range(samples)  # the slowest to change: more samples only add batches
        for first in range(0, len(places), sampling.batch)
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
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
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
            pad_token_id=tokenizer.pad_token_id,
            **({"temperature": sampling.temperature, "top_p": 1.0, "top_k": 0} if sampling.temperature > 0 else {}),
        )
    new = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def prompt(tokenizer: "PreTrainedTokenizerBase", conversation: Messages) -> str:
    """Return a conversation as the text after which the model replies.

    Where the template refuses or leaves out the system prompt, it stands at the head of the user's message.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    require_template(tokenizer)
    from jinja2 import TemplateError

    def text(messages: Messages) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    if conversation[0]["role"] != "system":
        return text(conversation)
    system, user, *others = conversation
    with suppress(TemplateError):
        told = text(conversation)
        if system["content"].strip() in told:
            return told
    return text([{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *others])


def require_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make sure that a model can be asked, and trained on answers.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise WeightWatchError(
            f"{tokenizer.name_or_path} has no chat template, so that it can't be asked. Use an instruction-tuned "
            "model, set tokenizer.chat_template and save the tokenizer beside the weights, or pass --positive and "
            "--negative."
        )


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
