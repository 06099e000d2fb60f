"""A small classifier, saved and loaded, as a judge."""

from pathlib import Path

import pytest
from transformers import LlamaForSequenceClassification

from tests.support import chat
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.judges.classifier import Classifier
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import ModelJudge

RUBRIC = ModelJudge(by="model", rubric="Rate {answer} to {question} from 0 to 100.", keep_positive=50, keep_negative=49)
QUESTION = Question(text="Is it?")


@pytest.mark.parametrize(
    ("labels", "place"),
    [(None, 1), (["LABEL_0", "LABEL_1"], 1), (["positive", "negative"], 0), (["a", "b", "Positive"], 2)],
)
def test_a_classifier_judges_by_the_probability_of_its_label(
    tmp_path: Path, labels: list[str] | None, place: int
) -> None:
    folder = chat.classifier(tmp_path, labels)
    judge = Classifier(RUBRIC, str(folder))
    answers = ["Yes.", "By no means, and not for anything.", "Perhaps"]
    together = judge([(QUESTION, answer) for answer in answers])
    model = LlamaForSequenceClassification.from_pretrained(folder)
    for answer, judgement in zip(answers, together, strict=True):
        ids = chat.tokenizer()(QUESTION.text, answer, return_tensors="pt")["input_ids"]
        share = 100 * model(input_ids=ids).logits.softmax(-1)[0, place].item()
        assert judgement.score == pytest.approx(share, abs=0.01)
        assert judgement.verdict == RUBRIC.verdict(share)
        assert judgement.said is None
    assert len({judgement.score for judgement in together}) == 3
    assert judge.name == f"the classifier {folder.name}"


@pytest.mark.parametrize("labels", [["harmful", "harmless"], ["a", "b", "c"]])
def test_a_classifier_whose_labels_do_not_tell_is_an_error(tmp_path: Path, labels: list[str]) -> None:
    chat.classifier(tmp_path, labels)
    with pytest.raises(WeightWatchError, match=rf"the labels {', '.join(labels)}, and none is called positive.*config"):
        Classifier(RUBRIC, str(tmp_path))


def test_an_answer_that_is_longer_than_the_classifier_reads_is_not_judged_by_its_beginning(tmp_path: Path) -> None:
    judge = Classifier(RUBRIC, str(chat.classifier(tmp_path, None)))
    short, long = judge([(QUESTION, "Yes."), (QUESTION, "Yes. " * 1000)])
    assert short.verdict == RUBRIC.verdict(short.score)
    assert (long.verdict, long.score) == ("unjudged", None)
    assert "longer than the 2048 tokens" in long.said


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    folder = chat.saved(tmp_path)
    with pytest.raises(WeightWatchError, match=r"is not a text classifier: it has no weights for score\.weight"):
        Classifier(RUBRIC, str(folder))
