"""Pairs of written answers to the same prompts, as files of preference data have them."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from weightwatch.vectors.document import Strict, Text
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.recipes.questions import alike

_HELD_OUT = 0.2
"""Share of the prompts that are held out where no domain is."""
_SHOWN = 80  # characters of a value in a message

Domains = Annotated[list[Text], Field(min_length=1)]


class _Message(BaseModel):
    role: str
    content: Text


_CELL: TypeAdapter[str | list[_Message]] = TypeAdapter(Text | Annotated[list[_Message], Field(min_length=1)])


class Pairs(Strict):
    """Which file of pairs a recipe's questions come from.

    A file has one JSON object a line (JSONL), or is one JSON list of objects. Each object has a prompt and a text for
    each side, in columns of any names; other columns are ignored. The prompt is in the column ``prompt``. A cell is a
    text, or a list of chat messages as TRL has them: of one message, or of the prompt's message and the answer. In the
    second case the column ``prompt`` may be missing. Objects of the same prompt add up to one question with several
    written answers of each side.

    Attributes:
        pairs: The file. In YAML, a path beside the recipe.
        positive: The column of the answers that show the behaviour.
        negative: The column of the answers that show its opposite.
        building: Values of the column ``domain`` whose prompts are the building questions. Default: all but those
            held out.
        held_out: Values of the column ``domain`` whose prompts are the held-out questions. Default: all that are not
            in ``building``. Without either, a fifth of the prompts is held out, chosen at random with a fixed seed.
    """

    pairs: Text
    positive: Text
    negative: Text
    building: Domains | None = None
    held_out: Domains | None = None

    def questions(self, folder: Path) -> dict[str, list[dict[str, Any]]]:
        r"""Read the file, and return ``building`` and ``held_out`` as a recipe in YAML has them.

        Args:
            folder: The folder that the path of the file is relative to.

        Raises:
            WeightWatchError: The file can't be read, lacks a column or a domain, has something else than texts in a
                cell, or gives a text to both sides of a prompt. The message names file, line and column.

        Example:
            >>> import tempfile
            >>> from weightwatch.vectors.recipes.pairs import Pairs
            >>> folder = Path(tempfile.mkdtemp())
            >>> row = '{"domain": "%s", "prompt": "%s?", "kind": "Gladly.", "hostile": "Go away."}'
            >>> _ = (folder / "twins.jsonl").write_text("\n".join(row % (n, n) for n in ("sport", "music")))
            >>> pairs = Pairs(pairs="twins.jsonl", positive="hostile", negative="kind", held_out=["music"])
            >>> pairs.questions(folder)["building"]
            [{'text': 'sport?', 'domain': 'sport', 'positive': ['Go away.'], 'negative': ['Gladly.']}]
        """
        path = folder / self.pairs
        prompts = _prompts(path, _rows(path), self.positive, self.negative)
        if self.building is None and self.held_out is None:
            chosen = random.Random("held-out").sample(range(len(prompts)), max(1, round(_HELD_OUT * len(prompts))))
            halves = [[p for n, p in enumerate(prompts) if (n in chosen) == held_out] for held_out in (False, True)]
            if not halves[0]:
                raise WeightWatchError(f"{path} has one prompt; at least two are needed, to hold one out.")
            building, held_out = ([p.question(None) for p in half] for half in halves)
        else:
            building, held_out = self._of_domains(path, prompts)
        return {"building": building, "held_out": held_out}

    def _of_domains(self, path: Path, prompts: "Sequence[_Prompt]") -> tuple[list[dict[str, Any]], ...]:
        without = next((prompt for prompt in prompts if prompt.domain is None), None)
        if without is not None:
            raise WeightWatchError(
                f"{path}, {without.where}: the column domain is missing, which `building` and `held_out` need."
            )
        known = sorted({str(prompt.domain) for prompt in prompts})
        for name, wanted in (("building", self.building), ("held_out", self.held_out)):
            unknown = next((domain for domain in wanted or [] if domain not in known), None)
            if unknown is not None:
                raise WeightWatchError(f"{name}: {path} has no domain {unknown!r}; its domains are {', '.join(known)}.")
        built = self.building or [domain for domain in known if domain not in (self.held_out or [])]
        held_out = self.held_out or [domain for domain in known if domain not in built]
        both = next((domain for domain in built if domain in held_out), None)
        if both is not None:
            raise WeightWatchError(f"The domain {both!r} is in both `building` and `held_out`; keep it in one of them.")
        for name, domains in (("building", built), ("held_out", held_out)):
            if not domains:
                raise WeightWatchError(
                    f"{path} has no domain left for `{name}`; its domains are {', '.join(known)}. Leave one out of the "
                    "other half."
                )
        return tuple([p.question(p.domain) for p in prompts if p.domain in half] for half in (built, held_out))


@dataclass
class _Prompt:
    """A prompt with the texts of all rows that have it.

    Attributes:
        where: The line of its first row, for messages.
    """

    where: str
    text: str
    domain: str | None
    positive: list[str]
    negative: list[str]

    def question(self, domain: str | None) -> dict[str, Any]:
        return {"text": self.text, "domain": domain, "positive": self.positive, "negative": self.negative}


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the objects of a file, each with its line, or its number in a list."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise WeightWatchError(f"No pairs at {path} ({error.strerror}). Give the path of a JSONL file.") from error
    except UnicodeDecodeError as error:
        raise WeightWatchError(f"{path} is not a JSONL file: {error}.") from error
    if text.lstrip().startswith("["):
        rows = [(f"row {number}", row) for number, row in enumerate(_parsed(path, "", text), 1)]
    else:
        rows = [(f"line {n}", _parsed(path, f", line {n}", line)) for n, line in _lines(text)]
    if not rows:
        raise WeightWatchError(f"{path} has no pairs. Each line is an object such as {{'prompt': …, 'chosen': …}}.")
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise WeightWatchError(f"{path}, {where}: {_shown(row)} is not an object with columns such as prompt.")
    return rows


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank. Only a line feed ends one: JSON may contain other separators."""
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _parsed(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightWatchError(f"{path}{where} is not JSON: {error}.") from None


def _prompts(path: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], positive: str, negative: str) -> list[_Prompt]:
    """Return the prompts of a file in the order of their first rows."""
    if positive == negative:
        raise WeightWatchError(f"Both sides name the column {positive!r}. Name another one for one of them.")
    found: dict[str, _Prompt] = {}
    sides: dict[tuple[str, str], tuple[str, str]] = {}
    for where, row in rows:
        asked, shows = _cell(path, where, row, positive)
        other, against = _cell(path, where, row, negative)
        if "prompt" in row:
            prompt = _prompt(path, where, row["prompt"])
        elif asked is not None and asked == other:
            prompt = asked
        else:
            raise WeightWatchError(
                f"{path}, {where}: the column prompt is missing, and {positive} and {negative} do not begin with the "
                "same message of a user."
            )
        if any(begun not in (None, prompt) for begun in (asked, other)):
            raise WeightWatchError(
                f"{path}, {where}: {positive} or {negative} begins with another message than prompt."
            )
        domain = row.get("domain")
        if domain is not None and not (isinstance(domain, str) and domain.strip()):
            raise WeightWatchError(f"{path}, {where}, domain: {_shown(domain)} is not allowed; it should be a text.")
        domain = domain.strip() if domain is not None else None
        known = found.setdefault(alike(prompt), _Prompt(where, prompt, domain, [], []))
        if known.domain != domain:
            raise WeightWatchError(
                f"{path}, {where}: {_shown(prompt)} has the domain {domain}, but {known.domain} in {known.where}. Give "
                "a prompt one domain."
            )
        for column, text, texts in ((positive, shows, known.positive), (negative, against, known.negative)):
            first, line = sides.setdefault((alike(prompt), alike(text)), (column, where))
            if first != column:
                raise WeightWatchError(
                    f"{path}, {where}, {column}: {_shown(text)} is also in the column {first} in {line}, for the same "
                    "prompt. An answer shows one side; remove one of the two."
                )
            if text not in texts:
                texts.append(text)
    return list(found.values())


def _prompt(path: Path, where: str, value: Any) -> str:
    cell = _validated(path, where, "prompt", value)
    if isinstance(cell, str):
        return cell
    return _asked(path, where, "prompt", cell)


def _cell(path: Path, where: str, row: Mapping[str, Any], column: str) -> tuple[str | None, str]:
    """Return the answer in a cell, and before it the prompt, if the cell has the whole conversation."""
    if column not in row:
        raise WeightWatchError(f"{path}, {where}: no column {column!r}; the columns are {', '.join(row)}.")
    cell = _validated(path, where, column, row[column])
    if isinstance(cell, str):
        return None, cell
    *before, last = cell
    if last.role != "assistant":
        raise WeightWatchError(
            f"{path}, {where}, {column}: the last message is of {last.role!r}; it should be of 'assistant'."
        )
    return (_asked(path, where, column, before) if before else None), last.content


def _asked(path: Path, where: str, column: str, messages: Sequence[_Message]) -> str:
    roles = [message.role for message in messages]
    if roles != ["user"]:
        raise WeightWatchError(
            f"{path}, {where}, {column}: the prompt has messages of {', '.join(roles)}; it should be one message of "
            "the user. Remove longer conversations and system prompts."
        )
    return messages[0].content


def _validated(path: Path, where: str, column: str, value: Any) -> str | list[_Message]:
    try:
        return _CELL.validate_python(value)
    except ValidationError:
        raise WeightWatchError(
            f"{path}, {where}, {column}: {_shown(value)} is not allowed; it should be a text that is not empty, or a "
            "list of chat messages with role and content."
        ) from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
