"""Judges: the recipe's own rule, a server on loopback, and a small classifier from disk."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.support import chat
from tests.support.endpoint import MODEL, Endpoint, serving
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building import judges
from weightwatch.vectors.building.judges import Judge, Judgement, chosen, judged, number
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import ModelJudge

RUBRIC = ModelJudge(by="model", rubric="Rate {answer} to {question} from 0 to 100.", keep_positive=70, keep_negative=30)
QUESTION = Question(text="Is it?")


def cases(*answers: str) -> list[tuple[Question, str]]:
    return [(QUESTION, answer) for answer in answers]


def repeated(prompt: str) -> str:
    """What stands between "Rate" and "to" is what the judge says."""
    return re.fullmatch(r"Rate (.*) to Is it\? from 0 to 100\.", prompt, re.DOTALL)[1]


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with serving(Endpoint(repeated)) as endpoint:
        yield endpoint


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("85", 85),
        (" 85.5\n", 85.5),
        ("0", 0),
        ("100", 100),
        ("**85**", 85),
        ("Score: 85", 85),
        ("85/100", 85),
        ("85 / 100.", 85),
        ("20 out of 100", 20),
        ("On a scale from 0 to 100 that is 12.", 12),
        ("It rates 12 (0-100).", 12),
        ("It has 2 flaws and does harm in 3 ways, so I say 90.", 90),
        ("A score of 100.", 100),
        ("85\n\nIt has 2 flaws, of which 1 is grave.", 85),
        ("Rating: **85**/100\nIt has 2 flaws.", 85),
        ("<think>Perhaps 40? No, 3 harms.</think>\n75", 75),
        ("1. It is rude.\n2. It is wrong.\n\nScore: 60", 60),
        ("85. It has 3 flaws.", 85),
        ("3 flaws, so 90", 90),
        ("Score: 85 (confidence 2)", 85),
        ("I give it 85 out of 100, as it makes 2 threats.", 85),
        ("1. It is rude.\n2. It is wrong.\n\n60", 60),
        ("", None),
        ("I can't rate that.", None),
        ("150", None),
        ("-5", None),
        ("I'd say -5", None),
        ("100.5", None),
    ],
)
def test_the_number_in_a_reply(said: str, score: float | None) -> None:
    assert number(said) == score


@pytest.mark.parametrize(
    ("said", "score"), [("<think>It has 2 flaws, so perhaps 40, but", None), ("85\n\nIt has 2 fla", 85)]
)
def test_a_reply_that_was_cut_short_only_counts_if_it_began_with_its_number(said: str, score: float | None) -> None:
    assert number(said, cut=True) == score


def test_an_endpoint_judges_by_its_numbers_in_order(server: Endpoint) -> None:
    judge = judges.Endpoint(RUBRIC, server.url)
    said = ["70", "69.9", "30", "I'd say 95.", "none", "150", ""]
    assert judge(cases(*said)) == [
        Judgement("positive", 70.0, "70"),
        Judgement("unclear", 69.9, "69.9"),
        Judgement("negative", 30.0, "30"),
        Judgement("positive", 95.0, "I'd say 95."),
        Judgement("unclear", None, "none"),
        Judgement("unclear", None, "150"),
        Judgement("unclear", None, ""),
    ]
    assert judge.name == f"{MODEL} at {server.url}"


def test_an_endpoint_is_asked_the_rubric_without_chance(server: Endpoint) -> None:
    judges.Endpoint(RUBRIC, server.url)(cases("{5}"))
    (body,) = server.asked
    assert body["model"] == MODEL
    assert body["messages"] == [{"role": "user", "content": "Rate {5} to Is it? from 0 to 100."}]
    assert body["temperature"] == 0.0


@pytest.mark.parametrize("key", [None, "sk-of-mine"])
def test_a_key_is_taken_from_the_environment(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv(judges.KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(judges.KEY, key)
    judges.Endpoint(RUBRIC, server.url)(cases("80"))
    assert server.keys == {f"Bearer {key or 'none'}"}


def test_a_reply_cut_short_by_the_endpoint_is_unclear(server: Endpoint) -> None:
    server.finish = "length"
    (judgement,) = judges.Endpoint(RUBRIC, server.url)(cases("It has 2 flaws, perhaps 90, but"))
    assert judgement.verdict == "unclear"
    assert judgement.score is None


def test_an_endpoint_that_fails_for_a_while_is_asked_again(server: Endpoint) -> None:
    judge = judges.Endpoint(RUBRIC, server.url)
    server.failures = 2
    assert [judgement.verdict for judgement in judge(cases("80"))] == ["positive"]
    assert server.failed == 2


def test_an_endpoint_that_goes_on_failing_is_named(server: Endpoint) -> None:
    judge = judges.Endpoint(RUBRIC, server.url)
    server.failures = 1000
    with pytest.raises(WeightWatchError, match=rf"The judge at {server.url} does not answer.*500.*is kept"):
        judge(cases("80"))
    assert server.failed == 5


def test_a_closed_port_is_named() -> None:
    with serving(Endpoint(repeated)) as endpoint:
        judge = judges.Endpoint(RUBRIC, endpoint.url, tries=1)
    for attempt in (lambda: judges.Endpoint(RUBRIC, endpoint.url, tries=1), lambda: judge(cases("80"))):
        with pytest.raises(WeightWatchError, match=rf"The judge at {endpoint.url} does not answer.*Start it, or check"):
            attempt()


def test_a_model_that_the_endpoint_does_not_serve_is_an_error_at_once(server: Endpoint) -> None:
    judge = judges.Endpoint(RUBRIC, server.url, "org/other")
    with pytest.raises(WeightWatchError, match=r"The model org/other does not exist.*--judge-model"):
        judge(cases("80"))
    assert server.asked == []


@pytest.mark.parametrize("model", [None, MODEL])
@pytest.mark.parametrize("raw", ["<html>Welcome</html>", "{oops", "[]", '{"data": [], "choices": []}'])
def test_an_address_where_something_else_answers_is_named(server: Endpoint, raw: str, model: str | None) -> None:
    server.raw = raw
    with pytest.raises(WeightWatchError, match=rf"What answers at {server.url} is no OpenAI-compatible.*ends in /v1"):
        judges.Endpoint(RUBRIC, server.url, model)(cases("80"))


def test_verdicts_come_in_batches_and_come_back_from_their_file(tmp_path: Path, server: Endpoint) -> None:
    judge = judges.Endpoint(RUBRIC, server.url)
    answers = cases(*(str(score) for score in range(40)))
    batches = list(judged(judge, answers))
    assert [len(batch) for batch in batches] == [32, 8]
    kept = judges.ledger(tmp_path / "verdicts.jsonl")
    for batch in batches:
        kept.extend(batch)
    found = dict(kept)
    assert list(found) == [("Is it?", str(score)) for score in range(40)]
    assert {score for (_, score), judgement in found.items() if judgement.verdict == "negative"} == {
        str(score) for score in range(31)
    }
    assert len(server.asked) == 40


def classifier(folder: Path, labels: list[str] | None, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tokenizer = chat.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        **({"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}),
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("labels", "place"),
    [(None, 1), (["LABEL_0", "LABEL_1"], 1), (["positive", "negative"], 0), (["a", "b", "Positive"], 2)],
)
def test_a_classifier_judges_by_the_probability_of_its_label(
    tmp_path: Path, labels: list[str] | None, place: int
) -> None:
    folder = classifier(tmp_path, labels)
    middling = RUBRIC.model_copy(update={"keep_positive": 50.0, "keep_negative": 49.0})
    judge = judges.Classifier(middling, str(folder))
    answers = ["Yes.", "By no means, and not for anything.", "Perhaps"]
    together = judge(cases(*answers))
    model = LlamaForSequenceClassification.from_pretrained(folder)
    for answer, judgement in zip(answers, together, strict=True):
        ids = chat.tokenizer()(QUESTION.text, answer, return_tensors="pt")["input_ids"]
        share = 100 * model(input_ids=ids).logits.softmax(-1)[0, place].item()
        assert judgement.score == pytest.approx(share, abs=0.01)
        assert judgement.verdict == judges.of_score(share, middling)
        assert judgement.said is None
    assert len({judgement.score for judgement in together}) == 3
    assert judge.name == f"the classifier {folder}"


@pytest.mark.parametrize("labels", [["harmful", "harmless"], ["a", "b", "c"]])
def test_a_classifier_whose_labels_do_not_tell_is_an_error(tmp_path: Path, labels: list[str]) -> None:
    classifier(tmp_path, labels)
    with pytest.raises(WeightWatchError, match=rf"the labels {', '.join(labels)}, and none is called positive.*config"):
        judges.Classifier(RUBRIC, str(tmp_path))


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    folder = chat.saved(tmp_path)
    with pytest.raises(WeightWatchError, match=r"is no text classifier: it has no weights for score\.weight"):
        judges.Classifier(RUBRIC, str(folder))


def test_a_judge_that_is_neither_address_nor_folder_is_an_error(tmp_path: Path) -> None:
    recipe = chat.recipe(judge=RUBRIC.model_dump())
    with pytest.raises(WeightWatchError, match=r"localhost:8000/v1 is no judge: neither the address"):
        chosen(recipe, "localhost:8000/v1")
    with pytest.raises(WeightWatchError, match="none is no judge: neither the address of an endpoint nor a text"):
        chosen(recipe, str(tmp_path / "none"))


def test_the_judge_that_is_named_is_chosen(tmp_path: Path, server: Endpoint) -> None:
    recipe = chat.recipe(judge=RUBRIC.model_dump())
    assert isinstance(chosen(recipe, server.url), judges.Endpoint)
    assert chosen(recipe, server.url, "org/other").name.startswith("org/other at")
    assert isinstance(chosen(recipe, str(classifier(tmp_path, None))), judges.Classifier)


def test_a_recipe_judges_by_its_own_rule() -> None:
    judge: Judge = chosen(chat.recipe())
    assert [j.verdict for j in judge(cases("Yes!", "Oh no.", "Yes and no.", ""))] == [
        "positive",
        "negative",
        "unclear",
        "unclear",
    ]
    assert judge.name == "the recipe's own rule, by patterns"


def test_a_rule_and_a_rubric_cannot_stand_in_for_each_other(server: Endpoint) -> None:
    with pytest.raises(WeightWatchError, match=r"'agreeing' has no rule of its own.*Pass --judge"):
        chosen(chat.recipe(judge=RUBRIC.model_dump()))
    with pytest.raises(WeightWatchError, match=r"'agreeing' is judged by its own rule.*Leave --judge out"):
        chosen(chat.recipe(), server.url)
