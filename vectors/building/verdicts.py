"""The verdicts of a build: a judge's rating of each answer, and the file that records them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from weightwatch.vectors.building.ledger import Ledger
from weightwatch.vectors.judges.judge import Judge, Judgement

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.questions import Question

Judged: TypeAlias = tuple[str, str]
"""A judged pair: the text of a question, and the text of an answer to it."""

_BATCH = 32  # answers rated before the file is written


def ledger(path: Path) -> Ledger[tuple[Judged, Judgement]]:
    """Return the file of a build's verdicts."""

    def parse(line: dict[str, Any]) -> tuple[Judged, Judgement]:
        return (line["question"], line["answer"]), Judgement(line["verdict"], line["score"], line["said"])

    def form(row: tuple[Judged, Judgement]) -> dict[str, Any]:
        (question, answer), judgement = row
        return {"question": question, "answer": answer, **asdict(judgement)}

    return Ledger(path, parse, form)


def judged(judge: Judge, cases: "Sequence[tuple[Question, str]]") -> Iterator[list[tuple[Judged, Judgement]]]:
    """Rate answers; yield the judgements in batches."""
    for first in range(0, len(cases), _BATCH):
        part = cases[first : first + _BATCH]
        yield list(zip(((question.text, answer) for question, answer in part), judge(part), strict=True))
