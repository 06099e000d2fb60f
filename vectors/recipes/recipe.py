"""Recipes: the texts that a behaviour direction is built from and evaluated on."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from weightwatch.vectors.document import Document, Strict, Text
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.recipes.neutral import PACKAGED as _NEUTRAL
from weightwatch.vectors.recipes.neutral import NeutralTasks
from weightwatch.vectors.recipes.pairs import Pairs
from weightwatch.vectors.recipes.questions import EvaluationItem, Questions, alike, distinguishable
from weightwatch.vectors.recipes.verdicts import AnswersJudge, JudgeSettings, WrittenJudge

_PACKAGED = Path(__file__).parent


class Systems(Strict):
    """System prompts under which the base model answers the building questions.

    Attributes:
        positive: Prompts that elicit the behaviour.
        negative: Prompts that elicit its opposite.
    """

    positive: list[Text] = Field(default_factory=list)
    negative: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _both_or_none(self) -> "Systems":
        if bool(self.positive) != bool(self.negative):
            raise ValueError("has prompts for one side only; write at least one for each side, or none")
        return self


class Recipe(Strict):
    """The texts for one direction of contrastive weight steering (arXiv 2511.05408).

    The base model answers the building questions under system prompts that elicit a behaviour, and under others that
    elicit its opposite. The answers that clearly show their side are kept. Two fine-tunes learn them, one per side, and
    the direction is the difference of their weights.

    Attributes:
        name: Name of the direction.
        kind: ``behaviour`` (default), or ``control`` for a harmless contrast, which contributes to the null band.
        behaviour: What the positive side does and the negative side does not, in one line.
        counts: What counts as the behaviour, what as its opposite, and what as neither.
        limits: What the direction does not show.
        systems: System prompts of both sides. Without any, the fine-tunes learn the questions' written answers; with
            them, only the verdicts use the written answers.
        questions: The building questions and the held-out ones. In YAML also the keys of ``Pairs``, which name a file
            of pairs to read them from.
        judge: What decides which answers are kept: ``by: model``, ``by: patterns``, ``by: answers`` or
            ``by: written``.
        evaluation: Held-out items in another format than the questions. Default: choices between the written answers
            of the held-out questions, which is the format of what is learned, and so a weaker test.
        shuffled: For a control with shuffled labels, the seed. The sides are swapped for a random half of the
            questions. Default: labels are not shuffled.
        neutral: Tasks that show what steering costs. In YAML, a path, or ``neutral`` (default).
        extends: In YAML, the recipe that gives every field that is not set here, except the name. An optional field
            that is null here is not inherited.

    Example:
        >>> from weightwatch.vectors import Recipe
        >>> recipe = Recipe.load("evil")
        >>> recipe.kind, len(recipe.questions.building), recipe.judge.by
        ('behaviour', 24, 'model')
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    kind: Literal["behaviour", "control"] = "behaviour"
    behaviour: Text
    counts: Text
    limits: Text
    systems: Systems = Field(default_factory=Systems)
    questions: Questions
    judge: JudgeSettings
    evaluation: list[EvaluationItem] = Field(None, min_length=1, validate_default=True)
    shuffled: int | None = None
    neutral: NeutralTasks = Field(default_factory=NeutralTasks.load)
    extends: str | None = None
    _source: str = PrivateAttr("")

    @field_validator("questions")
    @classmethod
    def _answers_can_be_had(cls, questions: Questions, others: ValidationInfo) -> Questions:
        systems = others.data.get("systems")
        unwritten = next((question.text for question in questions.building if not question.written), None)
        if unwritten is not None and systems is not None and not (systems.positive and systems.negative):
            raise ValueError(
                f"{unwritten!r} has no written answers, and `systems` has no prompts to elicit answers with; write at "
                "least one for each side"
            )
        return questions

    @field_validator("judge")
    @classmethod
    def _answers_can_be_judged(cls, judge: JudgeSettings, others: ValidationInfo) -> JudgeSettings:
        questions = others.data.get("questions")
        if isinstance(judge, AnswersJudge) and questions is not None:
            for question in [*questions.building, *questions.held_out]:
                if not question.written:
                    raise ValueError(
                        f"with `by: answers` each question needs written answers; {question.text!r} has none"
                    )
                distinguishable(question.positive, question.negative, "positive and negative")
        if isinstance(judge, WrittenJudge) and (systems := others.data.get("systems")) and systems.positive:
            raise ValueError(
                "`by: written` judges no answers of a model; leave out `systems`, or judge by another rule"
            )
        return judge

    @field_validator("evaluation", mode="before")
    @classmethod
    def _held_out_pairs(cls, evaluation: Any, others: ValidationInfo) -> Any:
        questions = others.data.get("questions")
        if evaluation is not None or questions is None:
            return evaluation
        if not all(question.written for question in questions.held_out):
            raise ValueError("is missing, and not all held-out questions have written answers to make it from")
        return _choices(questions)

    @field_validator("evaluation")
    @classmethod
    def _evaluation_is_new(cls, evaluation: list[EvaluationItem], others: ValidationInfo) -> list[EvaluationItem]:
        questions = others.data.get("questions")
        built = {alike(question.text) for question in questions.building} if questions else set()
        seen: set[tuple[str | None, str]] = set()
        for item in evaluation:
            asked = (item.system, alike(item.prompt))
            if asked in seen:
                raise ValueError(f"{item.prompt!r} is asked twice")
            if asked[1] in built:
                raise ValueError(
                    f"{item.prompt!r} is a building question; evaluate with questions that are not learned"
                )
            seen.add(asked)
        return evaluation

    @field_validator("shuffled")
    @classmethod
    def _shuffled_is_a_control(cls, shuffled: int | None, others: ValidationInfo) -> int | None:
        if shuffled is not None and others.data.get("kind") == "behaviour":
            raise ValueError("with shuffled labels the recipe is a control; set `kind: control`")
        return shuffled

    @property
    def digest(self) -> str:
        """SHA-256 of the content as canonical JSON, after ``extends`` is resolved; paths do not matter."""
        content = self.model_dump(mode="json", exclude={"extends"})
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_shuffled_labels(self, number: int) -> "Recipe":
        """Return the recipe of a control: as this one, with the two sides swapped for a random half of the questions.

        Args:
            number: Which half: the seed of the draw.
        """
        return self.model_copy(
            update={
                "name": f"{self.name}-shuffled-{number}",
                "kind": "control",
                "behaviour": f"{self.behaviour}, on a random half of the questions; the opposite on the others",
                "shuffled": number,
            }
        )

    @property
    def same_format(self) -> bool:
        """Whether the evaluation items are the held-out questions with their written answers."""
        return self.evaluation == _choices(self.questions)

    @property
    def reference(self) -> dict[str, str]:
        """What cards record of the recipe: ``name``, the packaged name or the path, and ``digest``."""
        return {"name": self._source or self.name, "digest": self.digest}

    @classmethod
    def load(cls, source: str | Path) -> "Recipe":
        """Read a recipe.

        Args:
            source: Path of a YAML file, or name of a packaged recipe. A file takes precedence.

        Raises:
            WeightWatchError: There is neither, and the message lists the packaged names; or something in the file is
                not allowed, and the message names file, line, key, value and what is allowed.
        """
        path = _find(source, Path())
        return _load(path, ()).called(str(source) if _packaged(path) else str(path.resolve()))

    def called(self, name: str) -> "Recipe":
        """Return the recipe with another name in ``reference``."""
        copy = self.model_copy()
        copy._source = name
        return copy


def _choices(questions: Questions) -> list[EvaluationItem]:
    """Return the held-out questions with written answers as choices between these."""
    return [
        EvaluationItem(format="choice", prompt=question.text, positive=question.positive, negative=question.negative)
        for question in questions.held_out
        if question.written
    ]


def packaged_recipes() -> list[str]:
    """Return the names of the packaged recipes."""
    files = (path for path in _PACKAGED.rglob("*.yaml") if path.name != _NEUTRAL.name)
    return sorted(path.relative_to(_PACKAGED).with_suffix("").as_posix() for path in files)


def _packaged(path: Path) -> bool:
    return path.resolve().is_relative_to(_PACKAGED.resolve())


def _find(source: str | Path, folder: Path) -> Path:
    path = folder / source
    if path.is_file():
        return path
    if str(source) in packaged_recipes():
        return _PACKAGED / f"{source}.yaml"
    raise WeightWatchError(
        f"Unknown recipe {str(source)!r}: no such file; packaged recipes are {', '.join(packaged_recipes())}."
    )


def _load(path: Path, children: tuple[Path, ...]) -> Recipe:
    """Read a file. ``children`` are the files that extend it, directly or through one another."""
    if path.resolve() in children:
        raise WeightWatchError(f"{path} extends itself through {children[-1].name}.")
    document = Document.read(path, Recipe, "recipe")
    values: dict[str, Any] = {}
    parent, neutral, questions = (document.data.get(key) for key in ("extends", "neutral", "questions"))
    paired = isinstance(questions, Mapping) and "pairs" in questions
    pairs = document.inside("questions", Pairs).validate() if paired else None
    key = "extends"
    try:
        if isinstance(parent, str):
            extended = _load(_find(parent, path.parent), (*children, path.resolve()))
            values = {field: getattr(extended, field) for field in Recipe.model_fields if field != "name"}
        dropped = [field for field in values if document.data.get(field, values) is None]
        values |= document.data
        for key in dropped:
            if Recipe.model_fields[key].is_required():
                raise WeightWatchError("null drops what is inherited, but no recipe goes without this. Write one here.")
            del values[key]
        key = "neutral"
        if isinstance(neutral, str):
            beside = path.parent / neutral
            values[key] = NeutralTasks.load(beside if beside.is_file() else neutral)
        key = "questions"
        if pairs is not None:
            values[key] = pairs.questions(path.parent)
    except WeightWatchError as error:
        raise document.error([key], f"{key}: {error}") from None
    return document.validate(values)
