"""Questions that a direction is built from, and items that it is evaluated on."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from weightwatch.vectors.document import Strict, Text
from weightwatch.vectors.recipes.words import contains, words

Texts = Annotated[list[Text], Field(max_length=200)]
"""Texts to search an answer for. Each of one side is compared with each of the other."""


def alike(text: str) -> str:
    """Return a text in lower case with single spaces, for comparison."""
    return " ".join(text.casefold().split())


def repeated(texts: Iterable[str]) -> str | None:
    """Return the first text that repeats an earlier one, or None."""
    seen: set[str] = set()
    for text in texts:
        if alike(text) in seen:
            return text
        seen.add(alike(text))
    return None


def apart(one: list[str], other: list[str], names: str) -> None:
    """Make sure that two lists of texts have none in common."""
    both = {alike(text) for text in one} & {alike(text) for text in other}
    shared = next((text for text in one if alike(text) in both), None)
    if shared is not None:
        raise ValueError(f"{shared!r} is both {names}; it can be only one of the two")


def distinguishable(one: list[str], other: list[str], names: str) -> None:
    """Make sure that an answer can contain a text of one list without containing a text of the other."""
    wordless = next((text for text in [*one, *other] if not words(text)), None)
    if wordless is not None:
        raise ValueError(f"{wordless!r} has no word to search an answer for")
    for longer, shorter in ((one, other), (other, one)):
        for text in longer:
            inside = next((part for part in shorter if contains(text, part)), None)
            if inside is not None:
                raise ValueError(
                    f"{text!r} contains {inside!r} of the other side, so an answer with it would be both {names}"
                )


class Question(Strict):
    """A question: in YAML a text, or a mapping with the keys below.

    Attributes:
        text: The question.
        domain: Its subject, if the recipe has several.
        positive: Written answers that show the behaviour. If they are given, so are the negative ones.
        negative: Written answers that show its opposite.
    """

    text: Text
    domain: Text | None = None
    positive: Texts = Field(default_factory=list)
    negative: Texts = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str | Mapping | Question):
            raise ValueError(f"{value!r} is not allowed; it should be a text in quotes, or keys such as `text:`")
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_or_none(self) -> "Question":
        if bool(self.positive) != bool(self.negative):
            raise ValueError("has written answers for one side only; give both `positive` and `negative`, or neither")
        apart(self.positive, self.negative, "positive and negative")
        return self

    @property
    def written(self) -> bool:
        """Whether it has written answers."""
        return bool(self.positive)


class Questions(Strict):
    """The questions of a recipe.

    Attributes:
        building: Questions whose answers the two fine-tunes learn.
        held_out: Questions for the evaluation only.
    """

    building: list[Question] = Field(min_length=1)
    held_out: list[Question] = Field(min_length=1)

    @model_validator(mode="after")
    def _halves_apart(self) -> "Questions":
        for half in ("building", "held_out"):
            twice = repeated(question.text for question in getattr(self, half))
            if twice is not None:
                raise ValueError(f"{twice!r} is twice in `{half}`")
        shared = repeated(question.text for question in [*self.building, *self.held_out])
        if shared is not None:
            raise ValueError(f"{shared!r} is in both `building` and `held_out`; keep it in one of them")
        return self

    @model_validator(mode="after")
    def _new_domains(self) -> "Questions":
        built = {question.domain for question in self.building} - {None}
        if built and not {question.domain for question in self.held_out} - {None} - built:
            raise ValueError(
                f"`held_out` needs a domain that is not in `building` ({', '.join(sorted(map(str, built)))}), to show "
                "whether the direction generalises"
            )
        return self


class Item(Strict):
    """An item whose answer is rated without a judge.

    Attributes:
        format: ``choice`` compares the log-probabilities of the listed texts as replies; ``open`` searches the greedy
            reply for them as whole words.
        prompt: The user's message.
        system: The system prompt, if any.
    """

    format: Literal["choice", "open"]
    prompt: Text
    system: Text | None = None

    def _validate_texts(self, one: list[str], other: list[str], names: str) -> None:
        apart(one, other, names)
        if self.format == "open":
            distinguishable(one, other, names)


class EvaluationItem(Item):
    """An item that shows whether a model has the behaviour.

    Attributes:
        positive: Texts that show the behaviour.
        negative: Texts that show its opposite.
    """

    positive: Texts = Field(min_length=1)
    negative: Texts = Field(min_length=1)

    @model_validator(mode="after")
    def _options_apart(self) -> "EvaluationItem":
        self._validate_texts(self.positive, self.negative, "positive and negative")
        return self
