"""A judge behind an OpenAI-compatible endpoint."""

import os
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.judges.client import KEY, Client, Response, fault
from weightwatch.vectors.judges.judge import Judge, Judgement
from weightwatch.vectors.judges.score import score
from weightwatch.vectors.recipes.verdicts import ModelJudge

if TYPE_CHECKING:
    import httpx2

    from weightwatch.vectors.recipes.questions import Question

_Body = TypeVar("_Body", bound=BaseModel)

_TRIES = 5
_TIMEOUT = 60.0  # seconds
_MAX_TOKENS = 4096  # of a reply: some judges reason before they give the number
_SAID = 100_000  # characters of a reply that are kept


class _Part(BaseModel):
    type: str = "text"
    text: str = ""


class _Message(BaseModel):
    content: str | list[_Part] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Named(BaseModel):
    id: str = Field(min_length=1)


class _Models(BaseModel):
    data: list[_Named] = Field(min_length=1)


class Endpoint(Judge):
    """A language model behind an OpenAI-compatible endpoint that rates each answer from 0 to 100.

    An answer that the endpoint refuses to rate, a reply that is cut short, and one without a score from 0 to 100 leave
    the answer ``unjudged``.

    Args:
        rubric: The prompt, and the thresholds of the verdicts.
        url: Address of the endpoint, such as ``http://localhost:8000/v1``. Neither name nor identity contains it.
        model: Name of the model at the endpoint. Default: the first that the endpoint lists.
        tries: Number of attempts per request, with exponential backoff.
        timeout: Seconds that an attempt may take as a whole.

    Raises:
        WeightWatchError: The address is not one, or the endpoint does not answer.
    """

    def __init__(
        self, rubric: ModelJudge, url: str, model: str | None = None, tries: int = _TRIES, timeout: float = _TIMEOUT
    ) -> None:
        self._rubric = rubric
        self._client = Client(url, os.environ.get(KEY, ""), tries, timeout)
        self._options: dict[str, Any] = {"temperature": 0.0, "max_tokens": _MAX_TOKENS}
        self._model = model or self._first_model()
        self.name, self.identity = self._client.public(self._model), self._model

    def rate(self, cases: "Sequence[tuple[Question, str]]") -> Generator[dict[int, Judgement], None, None]:
        """Rate answers, several at once."""
        return self._client.run(self._judged, cases)

    def _first_model(self) -> str:
        async def listed(http: "httpx2.AsyncClient", path: str) -> Response:
            return await self._client.request(http, "GET", path)

        ((response,),) = (part.values() for part in self._client.run(listed, ["/models"]))
        if response.status != 200:
            raise self._client.unanswered(self._client.described(response))
        return self._parsed(_Models, response).data[0].id

    async def _judged(self, http: "httpx2.AsyncClient", case: "tuple[Question, str]") -> Judgement:
        question, answer = case
        asked = {"role": "user", "content": self._rubric.prompt(question.text, answer)}
        options = self._options
        while True:
            body = {"model": self._model, "messages": [asked], **options}
            response = await self._client.request(http, "POST", "/chat/completions", body)
            simpler = _without_refused(options, response)
            if simpler is None:
                break
            self._options = options = simpler
        described = self._client.described(response)
        if _is_about_the_answer(response):
            return Judgement("unjudged", None, f"(refused) {described}")
        if response.status != 200:
            raise self._client.unanswered(described)
        return self._judgement(self._parsed(_Completion, response).choices[0])

    def _parsed(self, model: type[_Body], response: Response) -> _Body:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "response"
            raise WeightWatchError(
                f"The server at {self._client.place} is not an OpenAI-compatible endpoint, or serves no model "
                f"({where}: {first['msg']}). Check the address, which usually ends in /v1."
            ) from None

    def _judgement(self, choice: _Choice) -> Judgement:
        content = choice.message.content or ""
        reply = content if isinstance(content, str) else "".join(each.text for each in content if "text" in each.type)
        found = None if choice.finish_reason == "content_filter" else score(reply, choice.finish_reason == "length")
        said = self._client.without_secrets(reply)[:_SAID]
        return Judgement("unjudged" if found is None else self._rubric.verdict(found), found, said)


def _without_refused(options: dict[str, Any], response: Response) -> dict[str, Any] | None:
    """Return the options without the one that a response refuses; None if it refuses none.

    Some models take ``max_completion_tokens`` only, and some no temperature.
    """
    if response.status not in (400, 422):
        return None
    error = fault(response)
    about = str(error.get("param") or error.get("message") or error.get("detail") or "")
    name = next((name for name in options if name in about), None)
    if name is None:
        return None
    rest = {key: value for key, value in options.items() if key != name}
    return {**rest, "max_completion_tokens": options[name]} if name == "max_tokens" else rest


def _is_about_the_answer(response: Response) -> bool:
    """Whether a response refuses one answer, as a content filter does, and not every request."""
    told = fault(response)
    if response.status == 200:  # some servers report a refusal so
        return "choices" not in told and bool(told.get("message"))
    flagged = any(word in str(told).casefold() for word in ("moderation", "flagged", "filter"))
    return response.status in (400, 413, 422, 451) or (response.status == 403 and flagged)
