"""Judges: who says whether an answer shows the behaviour, its opposite, or neither clearly."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from weightwatch.vectors.building.ledger import Ledger
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.recipes.verdicts import AnswersJudge, ModelJudge, PatternsJudge, Verdict, verdict

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.questions import Question
    from weightwatch.vectors.recipes.recipe import Recipe

RULE = "rule"
"""Names the recipe's own rule as the judge."""
KEY = "OPENAI_API_KEY"
"""Environment variable with the key of an endpoint; local servers ask for none."""

_UNNAMED = {0: "label_0", 1: "label_1"}
_BATCH = 32  # answers judged between two writes
_AT_ONCE = 8  # requests under way
_TRIES = 5
_TOKENS = 1024  # of a judge's reply: some think aloud before they give the number
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# The 100 of "85/100", "85 out of 100" and "on a scale from 0 to 100" is none that was given.
_SCALE = re.compile(r"(?:\b[01]\s*(?:-|–|to|and)|/|\bout of)\s*100\b(?!\.\d)", re.IGNORECASE)
_ALONE = re.compile(rf"[^\w-]*(?:(?:score|rating|number|answer)[^\w-]+)?({_NUMBER.pattern})\W*", re.IGNORECASE)
_NAMED = re.compile(rf"\b(?:score|rating)[^\w-]+({_NUMBER.pattern})", re.IGNORECASE)
_OF_100 = re.compile(rf"({_NUMBER.pattern})\W*(?:/|out of)\s*100\b(?!\.\d)", re.IGNORECASE)
_LEADING = re.compile(rf"[^\w-]*(?!1\.)({_NUMBER.pattern})[.,:;)]*(?=\s|$)(?<=\W)")  # "85. It …", no "3 flaws", no list


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one answer.

    Attributes:
        verdict: ``positive``, ``negative`` or ``unclear``.
        score: From 0 to 100, how clearly the answer shows the behaviour; None from a rule, or where none was given.
        said: The judge's own words, where it has any.
    """

    verdict: Verdict
    score: float | None = None
    said: str | None = None


class Judge(Protocol):
    """Says of answers what they show."""

    name: str
    """What the direction's card calls it."""
    identity: str
    """What tells it from other judges: what it said once, it is not asked again."""

    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Judge some answers, each with the question that it answers.

        Raises:
            WeightWatchError: The judge can't be had.
        """
        ...


class Rule:
    """The recipe's own rule: patterns, or the written answers."""

    def __init__(self, rule: PatternsJudge | AnswersJudge) -> None:
        self._rule = rule
        self.name = self.identity = f"the recipe's own rule, by {rule.by}"

    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Judge some answers."""
        return [Judgement(verdict(self._rule, question, answer)) for question, answer in cases]


class Endpoint:
    """A language model behind an OpenAI-compatible endpoint, which gives each answer a number from 0 to 100.

    Args:
        rubric: What it is asked, and from which number on an answer is kept.
        url: Of the endpoint: ``http://localhost:8000/v1``.
        model: The judge's name there. Default: the first that the endpoint lists.
        tries: How often a request that fails is sent, with growing pauses.

    Raises:
        WeightWatchError: The package openai is missing, or the endpoint does not answer.
    """

    def __init__(self, rubric: ModelJudge, url: str, model: str | None = None, tries: int = _TRIES) -> None:
        try:
            from openai import OpenAI
        except ImportError:
            raise WeightWatchError(
                "A judge behind an endpoint needs the package openai. Install it: pip install 'weightwatch[judge]'."
            ) from None
        self._rubric, self._url = rubric, url
        self._client = OpenAI(base_url=url, api_key=os.environ.get(KEY, "none"), max_retries=tries - 1, timeout=60)
        with self._asked():
            self._model = model or self._client.models.list().data[0].id
        self.name, self.identity = f"{self._model} at {url}", self._model

    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Judge some answers; a reply without a number from 0 to 100 makes an unclear one."""
        with self._asked(), ThreadPoolExecutor(_AT_ONCE) as pool:
            replies = list(pool.map(self._ask, cases))
        return [self._rated(*reply) for reply in replies]

    @contextmanager
    def _asked(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.OpenAIError as error:
            raise WeightWatchError(
                f"The judge at {self._url} does not answer ({str(error) or type(error).__name__}). "
                f"Start it, or check the address, --judge-model and {KEY}. What is judged so far is kept, and the same "
                "command goes on from there."
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # the client hands on whatever came
            raise WeightWatchError(
                f"What answers at {self._url} is no OpenAI-compatible endpoint, or serves no model ({error}). Check "
                "the address, which mostly ends in /v1."
            ) from error

    def _ask(self, case: "tuple[Question, str]") -> tuple[str, bool]:
        """Return the judge's reply, and whether it was cut short."""
        question, answer = case
        reply = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": self._rubric.prompt(question.text, answer)}],
            temperature=0.0,
            max_tokens=_TOKENS,
        )
        choice = reply.choices[0]
        return choice.message.content or "", choice.finish_reason == "length"

    def _rated(self, said: str, cut: bool) -> Judgement:
        score = number(said, cut)
        if score is None:
            return Judgement("unclear", None, said)
        return Judgement(of_score(score, self._rubric), score, said)


class Classifier:
    """A local text classifier whose label ``positive`` means that an answer shows the behaviour.

    Of two labels without names it is the second.

    It sees question and answer as a pair. Its probability, in per cent, is the score.

    Args:
        rubric: From which number on an answer is kept.
        folder: A sequence classification model and its tokenizer: a folder, or a Hub id.

    Raises:
        WeightWatchError: It is no such model, or which of its labels is meant can't be told.
    """

    def __init__(self, rubric: ModelJudge, folder: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._rubric, self.name = rubric, f"the classifier {folder}"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise WeightWatchError(
                f"{folder} is no judge: neither the address of an endpoint nor a text classifier ({error})."
            ) from error
        if loading["missing_keys"]:
            raise WeightWatchError(
                f"{folder} is no text classifier: it has no weights for {', '.join(sorted(loading['missing_keys']))}. "
                "Pass one that was trained to tell answers that show the behaviour from others."
            )
        labels = {int(place): str(label).lower() for place, label in self._model.config.id2label.items()}
        named = [place for place, label in labels.items() if label == "positive"]
        if not named and labels != _UNNAMED:
            raise WeightWatchError(
                f"The classifier {folder} has the labels {', '.join(labels.values())}, and none is called positive. "
                "Name the one that means that an answer shows the behaviour so, in id2label of its config."
            )
        self._label = (named or [1])[0]
        weights = self._model.state_dict()
        self.identity = f"{labels}, {Fingerprint.of(weights, weights.__getitem__).model_dump_json()}"
        self._model.eval()
        if torch.cuda.is_available():
            self._model.to("cuda")

    @torch.no_grad()
    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Judge some answers."""
        questions, answers = [question.text for question, _ in cases], [answer for _, answer in cases]
        batch = self._tokenizer(questions, answers, return_tensors="pt", padding=True, truncation=True)
        logits = self._model(**batch.to(self._model.device)).logits.float()
        scores = (100 * logits.softmax(-1)[:, self._label]).tolist()
        return [Judgement(of_score(score, self._rubric), round(score, 2)) for score in scores]


def number(said: str, cut: bool = False) -> float | None:
    """Return the number from 0 to 100 that a judge's reply gives, or None.

    Some give it first and then explain it, some as so many out of 100; others think aloud and end with it.

    Args:
        said: The reply.
        cut: Whether it was cut short, so that its last number is not the one that it was to end with.
    """
    text = _SCALE.sub(" ", said).strip()
    alone, leading = _ALONE.fullmatch(text.partition("\n")[0]), _LEADING.match(text)
    if alone:
        numbers = [alone[1]]
    elif cut:
        numbers = []
    else:
        numbers = _NAMED.findall(text) or _OF_100.findall(said)
        numbers = numbers or ([leading[1]] if leading else _NUMBER.findall(text))
    score = float(numbers[-1]) if numbers else None
    return score if score is not None and 0 <= score <= 100 else None


def of_score(score: float, rubric: ModelJudge) -> Verdict:
    """Return what a number says: how clear it has to be is the recipe's to say."""
    if score >= rubric.keep_positive:
        return "positive"
    return "negative" if score <= rubric.keep_negative else "unclear"


def chosen(recipe: "Recipe", judge: str = RULE, model: str | None = None) -> Judge:
    """Return the judge that a user names.

    Args:
        recipe: Its rule, or its rubric.
        judge: ``rule``, the address of an endpoint, or a text classifier.
        model: Name of the judge at the endpoint.

    Raises:
        WeightWatchError: The recipe has no rule, or no rubric, where that is what is asked for; there is no such judge.
    """
    if judge == RULE:
        if isinstance(recipe.judge, ModelJudge):
            raise WeightWatchError(
                f"Recipe {recipe.name!r} has no rule of its own: a model judges its answers. Pass --judge, the address "
                "of an OpenAI-compatible endpoint (http://localhost:8000/v1) or the folder of a text classifier."
            )
        return Rule(recipe.judge)
    if not isinstance(recipe.judge, ModelJudge):
        raise WeightWatchError(
            f"Recipe {recipe.name!r} is judged by its own rule and has no rubric for a model. Leave --judge out, or "
            "give the recipe a judge `by: model`."
        )
    if re.match(r"https?://", judge):
        return Endpoint(recipe.judge, judge, model)
    return Classifier(recipe.judge, judge)


Judged: TypeAlias = tuple[str, str]
"""What a judgement is about: the text of a question, and that of an answer to it."""


def ledger(path: Path) -> Ledger[tuple[Judged, Judgement]]:
    """Return the file in which judgements are kept."""

    def parse(line: dict[str, Any]) -> tuple[Judged, Judgement]:
        return (line["question"], line["answer"]), Judgement(line["verdict"], line["score"], line["said"])

    def form(row: tuple[Judged, Judgement]) -> dict[str, Any]:
        (question, answer), judgement = row
        return {"question": question, "answer": answer, **asdict(judgement)}

    return Ledger(path, parse, form)


def judged(judge: Judge, cases: "Sequence[tuple[Question, str]]") -> Iterator[list[tuple[Judged, Judgement]]]:
    """Yield the judgements of answers in batches."""
    for first in range(0, len(cases), _BATCH):
        part = cases[first : first + _BATCH]
        yield list(zip(((question.text, answer) for question, answer in part), judge(part), strict=True))
