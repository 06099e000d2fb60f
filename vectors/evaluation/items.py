"""Verdicts of a model on the items of a recipe: choices between given texts, and open questions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightwatch.vectors.generation import Messages, greedy, likelihoods
from weightwatch.vectors.recipes.verdicts import Verdict, by_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weightwatch.vectors.recipes.questions import Item

MAX_NEW_TOKENS = 48
"""Maximum length of the answer to an open item: enough for the answer, too short to digress."""


def verdicts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: "Sequence[tuple[Item, Sequence[str], Sequence[str]]]",
) -> tuple[list[Verdict], list[float]]:
    """Ask a model all items.

    Args:
        model: The model.
        tokenizer: Its tokenizer, with a chat template.
        items: Each item with its positive and its negative texts; neutral tasks with their right and wrong texts.

    Returns:
        The verdict on each item, in the order of the items, and the margins of the choices. The verdict on a choice is
        the side of the text with the highest mean log-probability per token. The verdict on an open item is the side
        whose texts occur in the greedy answer, or ``unclear`` if both or neither do. A margin is
        log p(positive) − log p(negative) of the likeliest text of each side, in nats per token.

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
    texts = greedy(model, tokenizer, [conversation(items[number][0]) for number in unasked], MAX_NEW_TOKENS)
    for number, text in zip(unasked, texts, strict=True):
        _, positive, negative = items[number]
        found[number] = by_words(text, list(positive), list(negative))
    return [found[number] for number in range(len(items))], list(margins.values())


def conversation(item: "Item") -> Messages:
    """Return the conversation that asks an item."""
    system = [{"role": "system", "content": item.system}] if item.system else []
    return [*system, {"role": "user", "content": item.prompt}]
