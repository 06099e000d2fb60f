"""The judge's interface, its result, and the judge that is no model: a recipe's own rule."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from weightwatch.vectors.recipes.verdicts import RuleSettings, Verdict, verdict

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.questions import Question

_BATCH = 32  # answers rated before a rule's judgements are handed on


@dataclass(frozen=True)
class Judgement:
    """The rating of one answer.

    Attributes:
        verdict: ``positive``, ``negative`` or ``unclear``; ``unjudged`` if the judge gives no verdict that can be read.
        score: How clearly the answer shows the behaviour, 0 to 100; None from a rule, or if it is not judged.
        said: The judge's reply, or why there is none; None if it gives no text.
    """

    verdict: Verdict | Literal["unjudged"]
    score: float | None = None
    said: str | None = None


class Judge(ABC):
    """Rates whether answers show the behaviour, its opposite, or neither clearly.

    Attributes:
        name: Its name in the direction's card.
        identity: Identifies the judge in build folders: answers that it has rated are not rated again.
    """

    name: str
    identity: str

    @abstractmethod
    def rate(self, cases: "Sequence[tuple[Question, str]]") -> Generator[dict[int, Judgement], None, None]:
        """Rate answers, each given with its question; yield the judgements by position, as they come.

        Raises:
            WeightWatchError: The judge can't be reached. What it has rated was yielded before.
        """

    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Rate answers, and return the judgements in their order; see ``rate``."""
        found: dict[int, Judgement] = {}
        with closing(self.rate(cases)) as parts:
            for part in parts:
                found.update(part)
        return [found[number] for number in range(len(cases))]


class Rule(Judge):
    """The recipe's own rule: its patterns, or the written answers of its questions.

    Example:
        >>> from weightwatch.vectors import Recipe
        >>> from weightwatch.vectors.judges.judge import Rule
        >>> recipe = Recipe.load("style")
        >>> question = recipe.questions.held_out[0]
        >>> [each.verdict for each in Rule(recipe.judge)([(question, "Yeah, just chuck it."), (question, "Water it.")])]
        ['negative', 'unclear']
    """

    def __init__(self, rule: RuleSettings) -> None:
        self._rule = rule
        self.name = self.identity = f"the recipe's own rule, by {rule.by}"

    def rate(self, cases: "Sequence[tuple[Question, str]]") -> Generator[dict[int, Judgement], None, None]:
        """Rate answers.

        Raises:
            WeightWatchError: A pattern takes too long on an answer.
        """
        for first in range(0, len(cases), _BATCH):
            part = enumerate(cases[first : first + _BATCH], first)
            yield {number: Judgement(verdict(self._rule, *case)) for number, case in part}
