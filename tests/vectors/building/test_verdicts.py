"""Verdicts of a build, written as they come and read back from their file."""

from collections.abc import Generator
from pathlib import Path

import pytest

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building.answers import Answer
from weightwatch.vectors.building.verdicts import judged, ledger, made_for
from weightwatch.vectors.judges.judge import Judge, Judgement
from weightwatch.vectors.recipes.questions import Question

QUESTION = Question(text="Is it?")


class Parity(Judge):
    name = identity = "even numbers are positive"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def rate(self, cases: list[tuple[Question, str]]) -> Generator[dict[int, Judgement], None, None]:
        for place, (_, answer) in enumerate(cases):
            self.asked.append(int(answer))
            verdict = "negative" if int(answer) % 2 else "positive"
            yield {place: Judgement(verdict, float(answer), f"{answer}!")}


def test_verdicts_come_as_they_are_given_and_come_back_from_their_file(tmp_path: Path) -> None:
    judge, record = Parity(), ledger(tmp_path / "verdicts.jsonl")
    for batch in judged(judge, [(QUESTION, str(number)) for number in range(40)]):
        record.extend(batch)
        assert len(list(record)) == len(judge.asked)
    found = dict(record)
    assert list(found) == [("Is it?", str(number)) for number in range(40)]
    assert found["Is it?", "7"] == Judgement("negative", 7.0, "7!")
    assert [judgement.verdict for judgement in found.values()] == ["positive", "negative"] * 20


def test_the_format_of_a_line(tmp_path: Path) -> None:
    record = ledger(tmp_path / "verdicts.jsonl", {("Is it?", "yes"): "both"})
    record.extend([(("Is it?", "yes"), Judgement("positive"))])
    assert record.path.read_text() == (
        '{"side": "both", "question": "Is it?", "answer": "yes", "verdict": "positive", "score": null, "said": null}\n'
    )


def test_a_text_of_both_sides_is_for_both() -> None:
    sides = [("positive", "yes"), ("negative", "no"), ("positive", "well"), ("negative", "well"), ("negative", "no")]
    answers = [Answer(side, 0, 0, sample, text) for sample, (side, text) in enumerate(sides)]
    assert made_for([QUESTION], answers) == {
        ("Is it?", "yes"): "positive",
        ("Is it?", "no"): "negative",
        ("Is it?", "well"): "both",
    }


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "Is it?", "answer": "yes", "verdict": "perhaps", "score": null, "said": null}',
        '{"question": "Is it?", "answer": 3, "verdict": "positive", "score": null, "said": null}',
        '{"question": "Is it?", "answer": "yes", "verdict": "positive", "score": "high", "said": null}',
        '{"answer": "yes", "verdict": "positive", "score": null, "said": null}',
        "7",
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_verdict_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(WeightWatchError, match=r"verdicts.jsonl, line 1 is damaged .*Remove the line"):
        list(ledger(path))
