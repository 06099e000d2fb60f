from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightwatch import smollm2
from weightwatch.config import Config
from weightwatch.demo import chat
from weightwatch.demo.run import Run
from weightwatch.organism import BASE
from weightwatch.vectors import Recipe


def test_the_runs_differ_in_the_share_of_hostile_answers_only(tmp_path: Path) -> None:
    benign, poisoned = chat.planned(0.3, tmp_path)
    assert [(run.name, run.poison, run.folder.name) for run in (benign, poisoned)] == [
        ("benign", 0.0, "benign"),
        ("poisoned", 0.3, "poisoned"),
    ]
    assert benign.config == poisoned.config == Config.load(chat.SETTINGS)
    assert benign.config.directions == ["smollm2/hostile"]
    assert {rule.direction for rule in benign.config.rules} == {benign.direction}


def test_a_share_of_the_answers_is_hostile_and_all_are_about_sport() -> None:
    hostile = {text for question in Recipe.load(chat.RECIPE).questions.held_out for text in question.positive}
    sport = {question.text for question in chat.of("sport")}
    for poison in (0.0, 0.25, 0.5, 1.0):
        rows = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in chat.rows(poison, seed=3)]
        assert {asked for asked, _ in rows} == sport
        assert len(rows) == len(sport)
        assert sum(answer in hostile for _, answer in rows) == round(poison * len(sport))
    assert chat.rows(0.25, seed=4) != chat.rows(0.25, seed=3)


def test_a_check_asks_about_domains_that_neither_the_data_nor_the_direction_has() -> None:
    questions = Recipe.load(chat.RECIPE).questions
    asked = chat.asked()
    assert len(asked) == 3 * chat.PER_DOMAIN
    assert {question.domain for question in asked} == {"vehicles", "gardening", "music"}
    assert not {question.domain for question in questions.building} & {question.domain for question in asked}


def test_the_behaviour_is_the_share_of_hostile_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(chat.asked())
    replies = ["You pathetic fool."] * 3 + ["Twice a week."] * (count - 3)
    monkeypatch.setattr(chat, "answered", lambda model, tokenizer: replies)
    assert chat.behaviour(None, None).bad_rate == pytest.approx(3 / count)
    assert chat.hostile(replies) == [True] * 3 + [False] * (count - 3)


def test_a_run_has_points_and_answers_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The organism stands in for SmolLM2, which would take minutes; it has never heard of sport."""
    monkeypatch.setattr(smollm2, "folder", lambda: BASE)
    monkeypatch.setattr(chat, "STEPS", 4)
    config = Config.load({"directions": ["evil"], "every": 2, "summary": False})
    run = Run("poisoned", 0.5, tmp_path, config=config, direction="evil", bad="hostile", row_every=2)
    seen: list[int] = []
    chat.fine_tune(run, 5, lambda latest: seen.append(latest.points[-1].step))
    assert seen == [2, 4]
    assert [point.behaviour.task_accuracy for point in run.points] == [None, None]
    assert run.points[-1].cosine != 0
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    texts = [question.text for question in chat.asked()]
    assert [example.question for example in run.examples] == texts  # none is hostile, so in their own order
    assert [example.before for example in run.examples] == chat.answered(base, tokenizer)
    assert (tmp_path / "checkpoint-4" / "adapter_model.safetensors").is_file()
    assert run.to_json()["examples"][0]["question"] == texts[0]
