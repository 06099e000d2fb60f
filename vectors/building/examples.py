"""Training examples of the two fine-tunes, made from the answers that a judge keeps."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from weightwatch.vectors.building.answers import SIDES, Answer, Side
from weightwatch.vectors.building.verdicts import Judged
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.generation import Messages
from weightwatch.vectors.judges.judge import Judgement

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.recipe import Recipe

MIN_PAIRS = 32
"""Default of the smallest number of pairs of answers that a direction is built from."""


_SHOWN = 200  # characters of a judge's reply in a message


class Example(TypedDict):
    """A row of a conversational prompt-completion dataset for TRL.

    It has no system prompt, so that the fine-tune learns to show the behaviour without being told to.
    """

    prompt: Messages
    completion: Messages


Examples: TypeAlias = dict[Side, list[Example]]


def paired(
    recipe: "Recipe", answers: Iterable[Answer], kept: Mapping[Judged, Judgement], seed: int
) -> dict[int, Examples]:
    """Return examples from the answers whose verdict is their own side, equally many of both sides for each question.

    Both sides have the same questions in the same order, so that what they learn in common cancels in their difference.

    Args:
        recipe: The recipe. If it has ``shuffled``, the two sides are swapped for a random half of the questions.
        answers: The answers.
        kept: The judgement of each answer.
        seed: Seed of the choice among the answers to a question.

    Returns:
        Examples by index of the question. Questions without an answer of each side are left out.
    """
    questions = recipe.questions.building
    found: dict[int, dict[Side, list[str]]] = {}
    for answer in answers:
        if answer.text and kept[questions[answer.question].text, answer.text].verdict == answer.side:
            found.setdefault(answer.question, {side: [] for side in SIDES})[answer.side].append(answer.text)
    swapped = _swapped(recipe)
    pairs: dict[int, Examples] = {}
    for number, sides in sorted(found.items()):
        rng = random.Random(f"pairs-{seed}-{number}")
        size = min(map(len, sides.values()))
        chosen = {side: rng.sample(texts, size) for side, texts in sides.items()}
        if number in swapped:
            chosen = {"positive": chosen["negative"], "negative": chosen["positive"]}
        if size:
            text = questions[number].text
            pairs[number] = {side: [_example(text, reply) for reply in replies] for side, replies in chosen.items()}
    return pairs


def split(pairs: Mapping[int, Examples], share: float, seed: int) -> tuple[Examples, Examples]:
    """Split examples by question into a training set and a validation set.

    Args:
        pairs: The examples that ``paired`` returns, for at least two questions.
        share: Share of the questions in the validation set, 0 to 1. Each set gets at least one question.
        seed: Seed of the choice of questions and of the order of the examples.

    Returns:
        The training set and the validation set.
    """
    rng = random.Random(f"split-{seed}")
    held_out = set(rng.sample(sorted(pairs), min(max(1, round(share * len(pairs))), len(pairs) - 1)))
    order = [(number, row) for number, sides in pairs.items() for row in range(len(sides["positive"]))]
    rng.shuffle(order)

    def of(wanted: bool) -> Examples:
        return {side: [pairs[n][side][row] for n, row in order if (n in held_out) == wanted] for side in SIDES}

    return of(False), of(True)


def require_enough(
    recipe: "Recipe",
    pairs: Mapping[int, Examples],
    answers: Sequence[Answer],
    kept: Mapping[Judged, Judgement],
    min_pairs: int,
    record: Path,
) -> None:
    """Make sure that there are enough examples.

    Args:
        recipe: The recipe.
        pairs: The examples that ``paired`` returns.
        answers: The answers they were chosen from.
        kept: The judgement of each answer.
        min_pairs: Smallest number of pairs.
        record: The file of the verdicts, for the message.

    Raises:
        WeightWatchError: There are too few. The message counts the verdicts of each side.
    """
    count = sum(len(sides["positive"]) for sides in pairs.values())
    if count >= min_pairs and len(pairs) > 1:
        return
    counted = []
    for side in SIDES:
        verdicts = Counter(
            kept[recipe.questions.building[answer.question].text, answer.text].verdict
            for answer in answers
            if answer.side == side
        )
        counts = ", ".join(
            f"{count} {'without a verdict' if verdict == 'unjudged' else f'judged {verdict}'}"
            for verdict, count in verdicts.most_common()
        )
        counted.append(f"{verdicts.total()} of the {side} side ({counts or 'nothing to judge'})")
    without = next((judgement.said for judgement in kept.values() if judgement.verdict == "unjudged"), None)
    reply = "" if without is None else f" A reply without a verdict is {without[:_SHOWN]!r}."
    drawn = "Sample more answers (--num-samples), make the recipe's system prompts clearer, or lower --min-pairs."
    more = drawn if recipe.systems.positive else "Write more answers, or lower --min-pairs."
    raise WeightWatchError(
        f"Too few answers are left after judging: {count} pairs over {len(pairs)} questions, from "
        f"{' and '.join(counted)}; at least {min_pairs} pairs over 2 questions are needed.{reply} All verdicts are in "
        f"{record}. {more}"
    )


def _swapped(recipe: "Recipe") -> set[int]:
    if recipe.shuffled is None:
        return set()
    count = len(recipe.questions.building)
    return set(random.Random(f"shuffled-{recipe.shuffled}").sample(range(count), count // 2))


def _example(question: str, reply: str) -> Example:
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": reply}],
    }
