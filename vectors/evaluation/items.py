"""Asking a model the items of a recipe: choices between given texts, and open ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from weightwatch.vectors.building.answers import Messages, Sampling, evaluating, prompt, replies
from weightwatch.vectors.recipes.verdicts import Verdict, by_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weightwatch.vectors.recipes.questions import Item

BATCH = 32
"""Texts in a batch."""
TOKENS = 48
"""Tokens of an open answer: enough to give it, too few to ramble."""


def verdicts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: "Sequence[tuple[Item, Sequence[str], Sequence[str]]]",
) -> tuple[list[Verdict], list[float]]:
    """Ask all items.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with a chat template.
        items: Each with its positive and its negative texts (of neutral tasks: the right and the wrong ones).

    Returns:
        What each answer shows, in the order of the items. For a choice that is the side of the likeliest text, by its
        mean log-probability a token; for an open item, the side whose texts alone occur in the greedy answer. And of
        each choice log p(positive) − log p(negative), in nats a token.

    Raises:
        WeightWatchError: The tokenizer has no chat template.
    """
    found: dict[int, Verdict] = {}
    margins = {}
    choices = [number for number, (item, _, _) in enumerate(items) if item.format == "choice"]
    cases = [
        (conversation(item), text) for item, *sides in (items[n] for n in choices) for texts in sides for text in texts
    ]
    scores = iter(likelihoods(model, tokenizer, cases))
    for number in choices:
        best = [max(next(scores) for _ in texts) for texts in items[number][1:]]
        margins[number] = best[0] - best[1]
        found[number] = "positive" if margins[number] > 0 else "negative"
    unasked = [number for number in range(len(items)) if number not in found]
    said = greedy(model, tokenizer, [conversation(items[number][0]) for number in unasked], TOKENS)
    for number, text in zip(unasked, said, strict=True):
        _, positive, negative = items[number]
        found[number] = by_words(text, list(positive), list(negative))
    return [found[number] for number in range(len(items))], list(margins.values())


def greedy(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Messages], tokens: int
) -> list[str]:
    """Return the likeliest reply to each conversation."""
    sampling = Sampling(tokens=tokens, temperature=0.0)
    parts = (conversations[first : first + BATCH] for first in range(0, len(conversations), BATCH))
    return [text for part in parts for text in replies(model, tokenizer, part, sampling, 0)]


@torch.no_grad()
def likelihoods(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cases: Sequence[tuple[Messages, str]]
) -> list[float]:
    """Return the mean log-probability a token, in nats, of each text as the reply to a conversation."""
    found: list[float] = []
    with evaluating(model):
        for first in range(0, len(cases), BATCH):
            found += _likelihoods(model, tokenizer, cases[first : first + BATCH])
    return found


def _likelihoods(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", cases: Sequence[tuple[Messages, str]]
) -> list[float]:
    heads = [tokenizer(prompt(tokenizer, messages), add_special_tokens=False)["input_ids"] for messages, _ in cases]
    tails = [tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in cases]
    length = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
    ids = torch.zeros(len(cases), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        ids[row, : len(head) + len(tail)] = torch.tensor([*head, *tail])
        mask[row, : len(head) + len(tail)] = 1
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    found = []
    for row, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        last = len(head) + len(tail) - 1
        told = logits[row, len(head) - 1 : last].float().log_softmax(-1).cpu()  # a token is told by the place before it
        found.append(float(told.gather(1, torch.tensor(tail)[:, None]).mean()))
    return found


def conversation(item: "Item") -> Messages:
    """Return an item as a conversation."""
    system = [{"role": "system", "content": item.system}] if item.system else []
    return [*system, {"role": "user", "content": item.prompt}]
