"""What a model is asked: the questions that a direction is built from, and the items that judge it."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from weightwatch.vectors.document import Strict, Text
from weightwatch.vectors.recipes.words import holds, words


def alike(text: str) -> str:
    """Return what two texts have in common that differ only in case and space."""
    return " ".join(text.casefold().split())


def repeated(texts: Iterable[str]) -> str | None:
    """Return the first text that came before, or None."""
    seen: set[str] = set()
    for text in texts:
        if alike(text) in seen:
            return text
        seen.add(alike(text))
    return None


def apart(one: list[str], other: list[str], names: str) -> None:
    """Refuse two lists of texts that share one."""
    both = {alike(text) for text in one} & {alike(text) for text in other}
    shared = next((text for text in one if alike(text) in both), None)
    if shared is not None:
        raise ValueError(f"{shared!r} is both {names}; it can be only one of the two")


def distinguishable(one: list[str], other: list[str], names: str) -> None:
    """Refuse two lists of strings that an answer is looked through for, where one cannot be found without another."""
    wordless = next((text for text in [*one, *other] if not words(text)), None)
    if wordless is not None:
        raise ValueError(f"{wordless!r} has no word that an answer could be looked through for")
    for longer, shorter in ((one, other), (other, one)):
        for text in longer:
            inside = next((part for part in shorter if holds(text, part)), None)
            if inside is not None:
                raise ValueError(
                    f"{text!r} holds {inside!r} of the other side, so an answer with it would be both {names}"
                )


class Question(Strict):
    """A question, written as a text or with its keys.

    Attributes:
        text: What is asked.
        domain: What it is about, where a recipe has several.
        positive: Written answers that show the behaviour. With both kinds nothing has to be generated.
        negative: Written answers that show its opposite.
    """

    text: Text
    domain: Text | None = None
    positive: list[Text] = Field(default_factory=list)
    negative: list[Text] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str | Mapping | Question):
            raise ValueError(f"{value!r} is not allowed; it should be a text in quotes, or keys such as `text:`")
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _both_or_none(self) -> "Question":
        if bool(self.positive) != bool(self.negative):
            raise ValueError("has written answers of one kind only; give both `positive` and `negative`, or neither")
        apart(self.positive, self.negative, "positive and negative")
        return self

    @property
    def written(self) -> bool:
        """Whether it comes with its answers."""
        return bool(self.positive)


class Questions(Strict):
    """The questions of a recipe.

    Attributes:
        building: Their answers are what the two fine-tunes learn.
        held_out: Asked of the steered model only.
    """

    building: list[Question] = Field(min_length=1)
    held_out: list[Question] = Field(min_length=1)

    @model_validator(mode="after")
    def _halves_apart(self) -> "Questions":
        for half in ("building", "held_out"):
            twice = repeated(question.text for question in getattr(self, half))
            if twice is not None:
                raise ValueError(f"{twice!r} stands twice in `{half}`")
        shared = repeated(question.text for question in [*self.building, *self.held_out])
        if shared is not None:
            raise ValueError(f"{shared!r} stands in `building` and in `held_out`; ask it in one of them")
        return self

    @model_validator(mode="after")
    def _new_domains(self) -> "Questions":
        built = {question.domain for question in self.building} - {None}
        if built and not {question.domain for question in self.held_out} - {None} - built:
            raise ValueError(
                f"`held_out` has no domain that `building` lacks ({', '.join(sorted(map(str, built)))}); "
                "without one nothing tells whether the direction reaches beyond them"
            )
        return self


class Item(Strict):
    """Something asked whose answer can be told without a judge.

    Attributes:
        format: ``choice`` compares the log-probabilities of the listed texts as answers; in ``open`` a greedy answer is
            looked through for them as whole words.
        prompt: What the user says.
        system: A system prompt, if any.
    """

    format: Literal["choice", "open"]
    prompt: Text
    system: Text | None = None

    def _check(self, one: list[str], other: list[str], names: str) -> None:
        apart(one, other, names)
        if self.format == "open":
            distinguishable(one, other, names)


class EvaluationItem(Item):
    """An item that shows whether a model leans to the behaviour.

    Attributes:
        positive: Texts that show the behaviour.
        negative: Texts that show its opposite.
    """

    positive: list[Text] = Field(min_length=1)
    negative: list[Text] = Field(min_length=1)

    @model_validator(mode="after")
    def _options_apart(self) -> "EvaluationItem":
        self._check(self.positive, self.negative, "positive and negative")
        return self
