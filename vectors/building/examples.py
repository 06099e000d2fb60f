"""Examples: the answers that a judge kept, as what the two fine-tunes learn from."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from weightwatch.vectors.building.answers import SIDES, Answer, Messages, Side
from weightwatch.vectors.building.judges import Judged, Judgement
from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.recipe import Recipe

MINIMUM = 32
"""Pairs of answers below which nothing is built."""


class Example(TypedDict):
    """One row of a conversational prompt-completion dataset, as TRL reads it.

    The system prompt that elicited the answer is left out: the fine-tune is to behave so without being told to.
    """

    prompt: Messages
    completion: Messages


Examples: TypeAlias = dict[Side, list[Example]]


def paired(
    recipe: "Recipe", answers: Iterable[Answer], kept: Mapping[Judged, Judgement], seed: int
) -> dict[int, Examples]:
    """Return as many examples of one side as of the other for each question, of the answers that show their side.

    Both sides have the same questions in the same order: what they learn alike then cancels in their difference.

    Args:
        recipe: Its ``shuffled`` makes the sides of a random half of the questions swap.
        answers: What was said.
        kept: What the judge said of each.
        seed: Of the choice among a question's answers.

    Returns:
        By position of the question; of questions whose answers all failed, nothing.
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
    """Divide examples into those to learn and those by which learning rate and stop are chosen, question by question.

    Args:
        pairs: What ``paired`` returns, of two questions or more.
        share: Of the questions that are held out, 0 to 1; one at least, and one is left.
        seed: Of the choice of questions and of the order.
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
    minimum: int,
    where: Path,
) -> None:
    """Make sure that enough is left to learn from.

    Raises:
        WeightWatchError: Too little is, and the message tells what became of the answers.
    """
    count = sum(len(sides["positive"]) for sides in pairs.values())
    if count >= minimum and len(pairs) > 1:
        return
    told = []
    for side in SIDES:
        verdicts = Counter(
            kept[recipe.questions.building[answer.question].text, answer.text].verdict
            for answer in answers
            if answer.side == side
        )
        counts = ", ".join(f"{count} judged {verdict}" for verdict, count in verdicts.most_common())
        told.append(f"{verdicts.total()} of the {side} side ({counts or 'nothing to judge'})")
    raise WeightWatchError(
        f"Too few answers are left after judging: {count} pairs over {len(pairs)} questions where {minimum} over 2 are "
        f"needed, of {' and '.join(told)}. Every verdict is in {where}. Draw more (--samples), elicit it more clearly "
        "(the recipe's system prompts), or lower --minimum."
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
