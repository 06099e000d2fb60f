"""A judge behind an OpenAI-compatible endpoint."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.judges.judge import Judgement
from weightwatch.vectors.judges.score import score
from weightwatch.vectors.recipes.verdicts import ModelJudge

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.questions import Question

KEY = "OPENAI_API_KEY"
"""Environment variable with the API key; local servers need none."""

_CONCURRENT = 8  # requests
_TRIES = 5
_MAX_TOKENS = 1024  # of a reply: some judges reason before they give the number


class Endpoint:
    """A language model behind an OpenAI-compatible endpoint that rates each answer from 0 to 100.

    Args:
        rubric: The prompt, and the thresholds of the verdicts.
        url: Address of the endpoint, such as ``http://localhost:8000/v1``.
        model: Name of the model at the endpoint. Default: the first that the endpoint lists.
        tries: Number of attempts per request, with exponential backoff.

    Raises:
        WeightWatchError: The package openai is missing, or the endpoint does not answer.
    """

    def __init__(self, rubric: ModelJudge, url: str, model: str | None = None, tries: int = _TRIES) -> None:
        try:
            from openai import OpenAI
        except ImportError:
            raise WeightWatchError(
                "A judge behind an endpoint needs the package openai. Install it: pip install openai."
            ) from None
        self._rubric, self._url = rubric, url
        self._client = OpenAI(base_url=url, api_key=os.environ.get(KEY, "none"), max_retries=tries - 1, timeout=60)
        with self._explained():
            self._model = model or self._client.models.list().data[0].id
        self.name, self.identity = f"{self._model} at {url}", self._model

    def __call__(self, cases: "Sequence[tuple[Question, str]]") -> list[Judgement]:
        """Rate answers. A reply without a number from 0 to 100 makes an ``unclear`` verdict."""
        with self._explained(), ThreadPoolExecutor(_CONCURRENT) as pool:
            replies = list(pool.map(self._reply, cases))
        return [self._judgement(*reply) for reply in replies]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import openai

        try:
            yield
        except openai.OpenAIError as error:
            raise WeightWatchError(
                f"The judge at {self._url} does not answer ({str(error) or type(error).__name__}). "
                f"Start it, or check the address, --judge-model and {KEY}. The verdicts so far are saved, and the same "
                "command resumes from them."
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # the client passes on any response
            raise WeightWatchError(
                f"The server at {self._url} is not an OpenAI-compatible endpoint, or serves no model ({error}). Check "
                "the address, which usually ends in /v1."
            ) from error

    def _reply(self, case: "tuple[Question, str]") -> tuple[str, bool]:
        """Return the judge's reply, and whether it was cut short."""
        question, answer = case
        response = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": self._rubric.prompt(question.text, answer)}],
            temperature=0.0,
            max_tokens=_MAX_TOKENS,
        )
        choice = response.choices[0]
        return choice.message.content or "", choice.finish_reason == "length"

    def _judgement(self, reply: str, cut: bool) -> Judgement:
        found = score(reply, cut)
        return Judgement("unclear" if found is None else self._rubric.verdict(found), found, reply)
