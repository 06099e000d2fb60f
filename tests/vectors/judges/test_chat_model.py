"""A small chat model, saved and loaded, as a judge."""

from pathlib import Path

import pytest

from tests.support import chat
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.generation import load_model, replies
from weightwatch.vectors.judges.chat_model import ChatModel
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.judges.judge import Judgement
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import ModelJudge

RUBRIC = ModelJudge(by="model", rubric="Rate {answer} to {question}.")
QUESTION = Question(text="Is it?")


def test_it_is_asked_the_rubric_and_replies_greedily(tmp_path: Path) -> None:
    judge = ChatModel(RUBRIC, str(chat.saved(tmp_path)))
    answers = [f"answer {number}" for number in range(17)]
    found = judge([(QUESTION, answer) for answer in answers])
    model, tokenizer = load_model(str(tmp_path))
    asked = [{"role": "user", "content": "Rate answer 3 to Is it?."}]
    assert [found[3].said] == replies(model, tokenizer, [asked], max_new_tokens=32)
    assert found == judge([(QUESTION, answer) for answer in answers])
    assert {each.verdict for each in found} == {"unjudged"}  # random weights say no number
    assert judge.name == f"the chat model {tmp_path.name}"


@pytest.mark.parametrize(
    ("reply", "cut", "verdict", "score"),
    [
        ("85", False, "positive", 85.0),
        ("Score: 10", False, "negative", 10.0),
        ("50", False, "unclear", 50.0),
        ("8", True, "unjudged", None),
        ("I can't say.", False, "unjudged", None),
    ],
)
def test_its_replies_are_read_as_those_of_an_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str, cut: bool, verdict: str, score: float | None
) -> None:
    judge = ChatModel(RUBRIC, str(chat.saved(tmp_path)))
    monkeypatch.setattr("weightwatch.vectors.judges.chat_model.generated", lambda *_, **__: [(reply, cut)])
    assert judge([(QUESTION, "Yes.")]) == [Judgement(verdict, score, reply)]


def test_an_answer_that_does_not_fit_is_not_judged_by_its_beginning(tmp_path: Path) -> None:
    judge = ChatModel(RUBRIC, str(chat.saved(tmp_path)))
    long, short = judge([(QUESTION, "a" * 300), (QUESTION, "a")])
    assert long == Judgement("unjudged", None, "longer than the 256 tokens that the judge reads")
    assert short.said is not None
    assert short.said != long.said


def test_its_identity_is_that_of_weights_and_template(tmp_path: Path) -> None:
    first, same, other = (chat.saved(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    one, two, three = (ChatModel(RUBRIC, str(folder)).identity for folder in (first, same, other))
    assert one == two != three
    chat.tokenizer(chat.DROPS_SYSTEM).save_pretrained(first)
    assert ChatModel(RUBRIC, str(first)).identity != one


def test_a_model_without_a_chat_template_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"The judge .* has no chat template.*Pass an instruction-tuned"):
        ChatModel(RUBRIC, str(chat.saved(tmp_path, None)))


def test_its_config_tells_it_from_a_classifier_and_it_needs_a_rubric(tmp_path: Path) -> None:
    folder = str(chat.saved(tmp_path))
    assert isinstance(chosen(chat.recipe(judge=RUBRIC.model_dump()), folder), ChatModel)
    with pytest.raises(WeightWatchError, match="no rubric for a model"):
        chosen(chat.recipe(), folder)
