"""The verdicts of a build: a judge's rating of each answer, and the file that records them."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import TypeAdapter

from weightwatch.vectors.building.answers import Answer, Side
from weightwatch.vectors.building.ledger import Ledger
from weightwatch.vectors.judges.judge import Judge, Judgement

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.questions import Question

Judged: TypeAlias = tuple[str, str]
"""A judged pair: the text of a question, and the text of an answer to it."""
MadeFor: TypeAlias = Side | Literal["both"]
"""The side for which an answer was drawn or written; ``both`` if both sides have the same text."""


@dataclass(frozen=True)
class _Line(Judgement):
    """A line of the file."""

    question: str = field(kw_only=True)
    answer: str = field(kw_only=True)
    side: MadeFor | None = field(kw_only=True, default=None)


def made_for(questions: "Sequence[Question]", answers: Iterable[Answer]) -> dict[Judged, MadeFor]:
    """Return the side for which each answer was made. A text that both sides have is judged once, for ``both``."""
    found: dict[Judged, MadeFor] = {}
    for answer in answers:
        case = questions[answer.question].text, answer.text
        found[case] = answer.side if found.get(case, answer.side) == answer.side else "both"
    return found


def ledger(path: Path, sides: Mapping[Judged, MadeFor] | None = None) -> Ledger[tuple[Judged, Judgement]]:
    """Return the file of a build's verdicts.

    Args:
        path: The file.
        sides: The side of each answer, for a person who reads the file. Default: new lines name none.
    """
    read = TypeAdapter(_Line).validate_python

    def parse(line: Any) -> tuple[Judged, Judgement]:
        row = read(line)
        return (row.question, row.answer), Judgement(row.verdict, row.score, row.said)

    def form(row: tuple[Judged, Judgement]) -> dict[str, Any]:
        (question, answer), judgement = row
        return {"side": (sides or {}).get(row[0]), "question": question, "answer": answer, **asdict(judgement)}

    return Ledger(path, parse, form)


def judged(
    judge: Judge, cases: "Sequence[tuple[Question, str]]"
) -> Generator[list[tuple[Judged, Judgement]], None, None]:
    """Rate answers; yield the judgements as they come."""
    with closing(judge.rate(cases)) as parts:
        for part in parts:
            yield [((cases[number][0].text, cases[number][1]), judgement) for number, judgement in part.items()]
