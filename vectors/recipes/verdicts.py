"""Verdicts on answers: whether one shows the behaviour, its opposite, or neither clearly."""

from string import Formatter
from typing import Annotated, Literal, TypeAlias

import regex
from pydantic import AfterValidator, Field, field_validator, model_validator

from weightwatch.vectors.document import Strict, Text
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.recipes.questions import Question, alike
from weightwatch.vectors.recipes.words import contains

Verdict: TypeAlias = Literal["positive", "negative", "unclear"]


_PATIENCE = 1.0  # seconds of computing for one pattern on one answer


def _compiled(pattern: str) -> str:
    try:
        regex.compile(pattern, regex.IGNORECASE)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Pattern: TypeAlias = Annotated[Text, AfterValidator(_compiled)]


class ModelJudge(Strict):
    """A model rates each answer from 0 to 100.

    Attributes:
        by: ``model``.
        rubric: The prompt, with ``{question}`` and ``{answer}``. It asks for the number alone.
        keep_positive: Smallest score of an answer that shows the behaviour. Default 70.
        keep_negative: Largest score of an answer that shows its opposite. Default 30.
    """

    by: Literal["model"]
    rubric: Text
    keep_positive: float = Field(70, ge=0, le=100)
    keep_negative: float = Field(30, ge=0, le=100)

    @field_validator("rubric")
    @classmethod
    def _asks_about_both(cls, rubric: str) -> str:
        try:
            named = {name for _, name, _, _ in Formatter().parse(rubric) if name is not None}
        except ValueError as error:
            raise ValueError(f"has another brace ({error}); write it twice: {{{{ or }}}}") from None
        if named != {"question", "answer"}:
            found = ", ".join(f"{{{name}}}" for name in sorted(named)) or "none"
            raise ValueError(f"should have {{question}} and {{answer}} and nothing else in braces, found {found}")
        return rubric

    @model_validator(mode="after")
    def _thresholds_apart(self) -> "ModelJudge":
        if self.keep_negative >= self.keep_positive:
            raise ValueError(
                f"keep_negative ({self.keep_negative}) should be below keep_positive ({self.keep_positive})"
            )
        return self

    def prompt(self, question: str, answer: str) -> str:
        """Return the rubric, filled in for one answer."""
        return self.rubric.format(question=question, answer=answer)

    def verdict(self, score: float) -> "Verdict":
        """Return the verdict of a score, by the recipe's thresholds."""
        if score >= self.keep_positive:
            return "positive"
        return "negative" if score <= self.keep_negative else "unclear"


class PatternsJudge(Strict):
    """Regular expressions decide, regardless of case. No model is asked.

    Attributes:
        by: ``patterns``.
        positive: An answer that matches one of these, and none of the negative ones, shows the behaviour.
        negative: An answer that matches one of these, and none of the positive ones, shows its opposite.
    """

    by: Literal["patterns"]
    positive: list[Pattern] = Field(min_length=1)
    negative: list[Pattern] = Field(min_length=1)


class AnswersJudge(Strict):
    """The question's written answers decide: an answer contains one of them or not. No model is asked.

    Attributes:
        by: ``answers``.
    """

    by: Literal["answers"]


class WrittenJudge(Strict):
    """Each written answer shows the side that it was written for, and nothing is judged.

    For data whose sides are known. It has no verdict on an answer that is not written.

    Attributes:
        by: ``written``.
    """

    by: Literal["written"]


RuleSettings: TypeAlias = PatternsJudge | AnswersJudge | WrittenJudge
JudgeSettings: TypeAlias = Annotated[ModelJudge | RuleSettings, Field(discriminator="by")]


def verdict(judge: RuleSettings, question: Question, answer: str) -> Verdict:
    """Return the verdict of a rule on an answer.

    An answer that was written for one side of the question belongs to that side under every rule.

    Args:
        judge: The rule: patterns, or the question's written answers.
        question: The question, with its written answers if it has any.
        answer: The answer.

    Returns:
        ``positive`` or ``negative`` if only that side matches, else ``unclear``.

    Raises:
        WeightWatchError: A pattern takes longer than a second of computing on the answer.

    Example:
        >>> from weightwatch.vectors import Recipe, verdict
        >>> recipe = Recipe.load("refusal")
        >>> verdict(recipe.judge, recipe.questions.building[0], "I'm sorry, but I can't help with that request.")
        'positive'
    """
    said = alike(answer)
    written = _one_side(said in map(alike, question.positive), said in map(alike, question.negative))
    if written != "unclear" or isinstance(judge, WrittenJudge):
        return written
    if isinstance(judge, AnswersJudge):
        return by_words(answer, question.positive, question.negative)
    return _one_side(
        any(_matches(pattern, answer) for pattern in judge.positive),
        any(_matches(pattern, answer) for pattern in judge.negative),
    )


def _matches(pattern: str, answer: str) -> bool:
    try:
        return regex.search(pattern, answer, regex.IGNORECASE, timeout=_PATIENCE) is not None
    except TimeoutError:
        raise WeightWatchError(
            f"The recipe's pattern {pattern!r} takes more than {_PATIENCE:g} s of computing on an answer of "
            f"{len(answer)} characters. Rewrite it so that no repeated part repeats again inside, as in (a+)+."
        ) from None


def by_words(answer: str, positive: list[str], negative: list[str]) -> Verdict:
    """Return the verdict on an answer by the texts that it contains as runs of whole words, as for ``open`` items."""
    return _one_side(any(contains(answer, text) for text in positive), any(contains(answer, text) for text in negative))


def _one_side(positive: bool, negative: bool) -> Verdict:
    if positive == negative:
        return "unclear"
    return "positive" if positive else "negative"
