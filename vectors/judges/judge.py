"""The judge's interface, its result, and the judge that is no model: a recipe's own rule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from weightwatch.vectors.recipes.verdicts import AnswersJudge, PatternsJudge, Verdict, verdict

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.questions import Question


@dataclass(frozen=True)
class Judgement:
    """The rating of one answer.

    Attributes:
        verdict: ``positive``, ``negative`` or ``unclear``.
        score: How clearly the answer shows the behaviour, 0 to 100; None from a rule, or if the reply has no number.
        said: The judge's reply; None if it gives no text.
    """

    verdict: Verdict
    score: float | None = None
    said: str | None = None


class Judge(Protocol):
    """Rates whether answers show the behaviour, its opposite, or neither clearly."""

    name: str
    """Name in the direction's card."""
    identity: str
    """Identifies the judge in build folders: answers that it has rated are not rated again."""

    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Rate answers, each given with its question.

        Raises:
            WeightWatchError: The judge can't be reached.
        """
        ...


class Rule:
    """The recipe's own rule: its patterns, or the written answers of its questions.

    Example:
        >>> from weightwatch.vectors import Recipe
        >>> from weightwatch.vectors.judges.judge import Rule
        >>> recipe = Recipe.load("style")
        >>> question = recipe.questions.held_out[0]
        >>> [each.verdict for each in Rule(recipe.judge)([(question, "Yeah, just chuck it."), (question, "Water it.")])]
        ['negative', 'unclear']
    """

    def __init__(self, rule: PatternsJudge | AnswersJudge) -> None:
        self._rule = rule
        self.name = self.identity = f"the recipe's own rule, by {rule.by}"

    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Rate answers."""
        return [Judgement(verdict(self._rule, question, answer)) for question, answer in cases]
