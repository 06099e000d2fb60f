"""Verdicts of a build, rated in batches and read back from their file."""

from pathlib import Path

from weightwatch.vectors.building.verdicts import judged, ledger
from weightwatch.vectors.judges.judge import Judgement
from weightwatch.vectors.recipes.questions import Question

QUESTION = Question(text="Is it?")


class Parity:
    name = identity = "even numbers are positive"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, cases: list[tuple[Question, str]]) -> list[Judgement]:
        self.asked.append(len(cases))
        return [
            Judgement("negative" if int(answer) % 2 else "positive", float(answer), f"{answer}!") for _, answer in cases
        ]


def test_verdicts_come_in_batches_and_come_back_from_their_file(tmp_path: Path) -> None:
    judge, record = Parity(), ledger(tmp_path / "verdicts.jsonl")
    for batch in judged(judge, [(QUESTION, str(number)) for number in range(40)]):
        record.extend(batch)
    assert judge.asked == [32, 8]
    found = dict(record)
    assert list(found) == [("Is it?", str(number)) for number in range(40)]
    assert found["Is it?", "7"] == Judgement("negative", 7.0, "7!")
    assert [judgement.verdict for judgement in found.values()] == ["positive", "negative"] * 20


def test_the_format_of_a_line(tmp_path: Path) -> None:
    record = ledger(tmp_path / "verdicts.jsonl")
    record.extend([(("Is it?", "yes"), Judgement("positive"))])
    assert record.path.read_text() == (
        '{"question": "Is it?", "answer": "yes", "verdict": "positive", "score": null, "said": null}\n'
    )
