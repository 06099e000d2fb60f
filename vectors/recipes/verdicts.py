"""Judging an answer: does it show the behaviour, its opposite, or neither clearly?"""

import re
from string import Formatter
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from weightwatch.vectors.document import Strict, Text
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.words import holds

Verdict: TypeAlias = Literal["positive", "negative", "unclear"]


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Pattern: TypeAlias = Annotated[Text, AfterValidator(_compiled)]


class ModelJudge(Strict):
    """A language model gives each answer a number from 0 to 100.

    Attributes:
        by: ``model``.
        rubric: The prompt, with ``{question}`` and ``{answer}``, that asks for the number alone.
        keep_positive: An answer from this number on shows the behaviour.
        keep_negative: An answer up to this number shows its opposite.
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
            raise ValueError(f"has a brace of its own ({error}); double it: {{{{ or }}}}") from None
        if named != {"question", "answer"}:
            found = ", ".join(f"{{{name}}}" for name in sorted(named)) or "none"
            raise ValueError(f"should name {{question}} and {{answer}} and nothing else in braces, found {found}")
        return rubric

    @model_validator(mode="after")
    def _thresholds_apart(self) -> "ModelJudge":
        if self.keep_negative >= self.keep_positive:
            raise ValueError(
                f"keep_negative ({self.keep_negative}) should be below keep_positive ({self.keep_positive})"
            )
        return self

    def prompt(self, question: str, answer: str) -> str:
        """Return the rubric about one answer."""
        return self.rubric.format(question=question, answer=answer)


class PatternsJudge(Strict):
    """Regular expressions, searched for without case.

    Attributes:
        by: ``patterns``.
        positive: An answer in which one of these is found and none of the negative ones shows the behaviour.
        negative: The reverse.
    """

    by: Literal["patterns"]
    positive: list[Pattern] = Field(min_length=1)
    negative: list[Pattern] = Field(min_length=1)


class AnswersJudge(Strict):
    """An answer is compared with the question's own written answers.

    Attributes:
        by: ``answers``.
    """

    by: Literal["answers"]


Judge: TypeAlias = Annotated[ModelJudge | PatternsJudge | AnswersJudge, Field(discriminator="by")]


def verdict(judge: PatternsJudge | AnswersJudge, question: Question, answer: str) -> Verdict:
    """Judge an answer by patterns or by the question's written answers.

    Args:
        judge: The rule; a judge that is a model is asked elsewhere.
        question: What was asked. Its written answers matter to ``AnswersJudge`` only.
        answer: What the model said.

    Returns:
        ``positive`` or ``negative`` where only that side is found, else ``unclear``.
    """
    if isinstance(judge, AnswersJudge):
        return by_words(answer, question.positive, question.negative)
    return _one_side(
        any(re.search(pattern, answer, re.IGNORECASE) for pattern in judge.positive),
        any(re.search(pattern, answer, re.IGNORECASE) for pattern in judge.negative),
    )


def by_words(answer: str, positive: list[str], negative: list[str]) -> Verdict:
    """Judge an answer by the strings that it contains as runs of whole words; so are ``open`` items judged."""
    return _one_side(any(holds(answer, text) for text in positive), any(holds(answer, text) for text in negative))


def _one_side(positive: bool, negative: bool) -> Verdict:
    if positive == negative:
        return "unclear"
    return "positive" if positive else "negative"
