import copy
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from accelerate.state import GradientState
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import EarlyStoppingCallback, LlamaForCausalLM, Trainer
from transformers.trainer_utils import HPSearchBackend

from tests.support.models import dense, lora, low_rank, tiny_gpt2, tiny_llama
from tests.support.runs import STRICT, At, lines, steps, timeless, trainer
from tests.test_session import toward
from weightwatch import Config, Direction, Monitor, Reading, WeightWatchCallback, WeightWatchError
from weightwatch.calibration.calibrate import calibrate
from weightwatch.calibration.references import Reference
from weightwatch.config import Rule
from weightwatch.record.history import History
from weightwatch.rules.manager import RuleManager
from weightwatch.scan.checkpoints import run as saved
from weightwatch.scan.scanner import Scan
from weightwatch.setup import Setup, content
from weightwatch.vectors.validation import Validation

MOVED = {"alert": "moved", "direction": "evil", "metric": "dose", "scope": "any_layer", "above": -1e9}
"""Fires at the first check at which anything has moved."""


def evil() -> Direction:
    return low_rank(tiny_llama(), 5)


def watched(
    folder: Path, *, model: nn.Module | None = None, config: dict[str, Any] | None = None, **changes: Any
) -> tuple[Trainer, WeightWatchCallback]:
    callback = WeightWatchCallback([evil()], config={**STRICT, **(config or {})})
    beside = changes.pop("beside", [])
    return trainer(model or lora(tiny_llama()), folder, *beside, callback, **changes), callback


def checkpoints(folder: Path) -> dict[int, str]:
    return {line["step"]: line["checkpoint"] for line in lines(folder) if line["checkpoint"]}


# When a check runs


def test_a_check_runs_before_the_first_step_every_n_steps_and_after_the_last(tmp_path: Path) -> None:
    watched(tmp_path, config={"every": 3})[0].train()
    assert steps(tmp_path) == [0, 3, 6, 8]
    assert checkpoints(tmp_path) == {}


def test_gradient_accumulation_counts_optimizer_steps(tmp_path: Path) -> None:
    watched(tmp_path, gradient_accumulation_steps=3, max_steps=5)[0].train()
    assert steps(tmp_path) == [0, 2, 4, 5]


def test_every_checkpoint_has_its_reading(tmp_path: Path) -> None:
    watched(tmp_path, config={"every": 4}, save_strategy="steps", save_steps=3)[0].train()
    assert steps(tmp_path) == [0, 3, 4, 6, 8]
    assert checkpoints(tmp_path) == {3: "checkpoint-3", 6: "checkpoint-6", 8: "checkpoint-8"}


def test_a_checkpoint_at_the_end_of_an_epoch_has_its_reading(tmp_path: Path) -> None:
    changes = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 16}
    watched(tmp_path, config={"every": 3}, save_strategy="epoch", **changes)[0].train()
    assert steps(tmp_path) == [0, 3, 4, 6, 8]
    assert checkpoints(tmp_path) == {4: "checkpoint-4", 8: "checkpoint-8"}


def test_a_checkpoint_of_the_best_model_has_its_reading(tmp_path: Path) -> None:
    best = {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 3}
    watched(tmp_path, config={"every": 50}, evaluated=True, **best)[0].train()
    saved = {int(path.name.removeprefix("checkpoint-")): path.name for path in tmp_path.glob("checkpoint-*")}
    assert saved
    assert checkpoints(tmp_path) == saved
    assert steps(tmp_path) == sorted({0, *saved, 8})


def test_a_training_that_is_stopped_early_ends_with_a_reading(tmp_path: Path) -> None:
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    evaluated = {"eval_strategy": "steps", "eval_steps": 3, "metric_for_best_model": "loss"}
    task, _ = watched(tmp_path, config={"every": 50}, beside=[stop], evaluated=True, **evaluated)
    task.train()
    assert steps(tmp_path) == [0, task.state.global_step]
    assert task.state.global_step < 8


def test_the_best_model_that_is_loaded_at_the_end_is_not_taken_for_the_last_step(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    watched(tmp_path, config={"every": 50}, evaluated=True, save_steps=2, learning_rate=1.0, **best)[0].train()
    assert steps(tmp_path) == [0, 2, 4, 6, 8]
    assert timeless(tmp_path)[-1]["update_norm"] == offline(tmp_path / "checkpoint-8").update_norm


# What a check says


def offline(checkpoint: Path) -> Reading:
    model = PeftModel.from_pretrained(tiny_llama(), checkpoint)
    return Monitor([evil()]).measure(model, step=int(checkpoint.name.removeprefix("checkpoint-")))


def test_the_reading_of_a_checkpoint_is_that_of_its_weights(tmp_path: Path) -> None:
    task, callback = watched(tmp_path, save_strategy="steps", save_steps=3)
    task.train()
    assert callback.session is not None
    for reading in History(tmp_path / "weightwatch").readings():
        if reading.checkpoint:
            loaded = offline(tmp_path / reading.checkpoint)
            assert (loaded.directions, loaded.update_norm) == (reading.directions, reading.update_norm)


def test_the_reading_of_a_full_checkpoint_is_that_of_its_weights(tmp_path: Path) -> None:
    task, _ = watched(tmp_path, model=tiny_llama(), save_strategy="steps", save_steps=4, learning_rate=1e-3)
    task.train()
    start = {name: tensor.clone() for name, tensor in tiny_llama().state_dict().items()}
    for reading in list(History(tmp_path / "weightwatch").readings())[1:]:
        if reading.checkpoint:
            model = LlamaForCausalLM.from_pretrained(tmp_path / reading.checkpoint)
            loaded = Monitor([evil()], reference=start).measure(model)
            assert (loaded.directions, loaded.update_norm) == (reading.directions, reading.update_norm)


def test_the_record_holds_the_lines_that_the_documentation_shows(tmp_path: Path) -> None:
    watched(tmp_path, save_strategy="steps", save_steps=8)[0].train()
    line = lines(tmp_path)[-1]
    assert list(line) == ["step", "time", "update_norm", "directions", "checkpoint", "left_out"]
    found = line["directions"]["evil"]
    assert {"cosine", "reach_cosine", "dose", "reach", "z", "layers", "modules"} <= set(found)
    assert list(found["layers"]) == ["0", "1"]
    assert "down_proj" in found["modules"]


def test_training_with_the_callback_is_training_without_it_to_the_last_bit(tmp_path: Path) -> None:
    results = []
    for name in ("with", "without"):
        model = lora(tiny_llama(attention_dropout=0.3), lora_dropout=0.3)
        if name == "with":
            task, _ = watched(tmp_path / name, model=model, config={"every": 1})
        else:
            task = trainer(model, tmp_path / name)
        task.train()
        losses = [entry["loss"] for entry in task.state.log_history if "loss" in entry]
        results.append((model.state_dict(), torch.get_rng_state(), losses))
    (weights, state, losses), (other_weights, other_state, other_losses) = results
    assert all(torch.equal(weights[name], other_weights[name]) for name in other_weights)
    assert torch.equal(state, other_state)
    assert losses == other_losses


def test_tensorboard_has_a_run_of_its_own_under_the_log_folder(tmp_path: Path) -> None:
    watched(tmp_path, report_to=["tensorboard"])[0].train()
    found = EventAccumulator(str(tmp_path / "runs" / "weightwatch"))
    found.Reload()
    assert [event.step for event in found.Scalars("evil/reach_cosine")] == [0, 2, 4, 6, 8]
    assert "evil.layers/cosine/001" in found.Tags()["scalars"]
    assert "custom_scalars__config__" in found.Tags()["tensors"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_tensorboard_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "~/logs")
    watched(tmp_path / "run", max_steps=2)[0].train()
    assert list((tmp_path / "logs" / "run-weightwatch").glob("events.*"))


def test_tensorboard_can_be_left_out(tmp_path: Path) -> None:
    watched(tmp_path, config={"tensorboard": False}, max_steps=2)[0].train()
    assert not (tmp_path / "runs").exists()
    assert steps(tmp_path) == [0, 2]


def test_a_table_closes_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched(tmp_path, config={"summary": True})[0].train()
    out = capsys.readouterr().out
    assert "step 8" in out
    assert "evil" in out


# Directions and settings


def test_one_direction_may_be_given_by_path_by_itself_or_in_the_settings(tmp_path: Path) -> None:
    folder = evil().save(tmp_path / "evil")
    path = tmp_path / "weightwatch.yaml"
    path.write_text(yaml.safe_dump({"directions": [str(folder)], **STRICT}))
    for number, callback in enumerate(
        [
            WeightWatchCallback(str(folder), config=STRICT),
            WeightWatchCallback(folder, config=STRICT),
            WeightWatchCallback(evil(), config=Config.load(STRICT)),
            WeightWatchCallback(config=path),
        ]
    ):
        run = tmp_path / f"run-{number}"
        trainer(lora(tiny_llama()), run, callback, max_steps=2).train()
        assert list(lines(run)[-1]["directions"]) == ["evil"]


def test_controls_give_the_z_that_rules_can_judge(tmp_path: Path) -> None:
    style = low_rank(tiny_llama(), 8, name="style").save(tmp_path / "style")
    rule = {"alert": "z", "direction": "evil", "metric": "z", "above": -1e9}
    watched(tmp_path / "run", config={"controls": [str(style)], "rules": [rule]})[0].train()
    found = lines(tmp_path / "run")[-1]["directions"]
    assert found["evil"]["z"] is not None
    assert found["style"]["z"] is None
    assert lines(tmp_path / "run", "alerts.jsonl")[0]["metric"] == "z"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"directions": "evill-typo"}, "Unknown direction 'evill-typo': it is neither a folder nor"),
        ({"directions": []}, "Nothing to watch: name at least one direction, here"),
        ({"config": {"every": 0}}, "config: every: 0 is not allowed; it should be greater than or equal to 1."),
        ({"config": "nowhere.yaml"}, "No config at nowhere.yaml"),
        ({"config": {"rules": [{**MOVED, "direction": "good"}]}}, "Rule 'moved' is about the direction 'good', which"),
        ({"config": {"rules": [{**MOVED, "metric": "z"}]}}, "Rule 'moved' uses z, which needs a behaviour direction"),
        ({"config": {"controls": ["nowhere"]}}, "Unknown direction 'nowhere'"),
        ({"config": {"reference": "/nowhere"}}, "No weights at /nowhere: there is no such file or folder."),
    ],
)
def test_bad_input_is_refused_when_the_callback_is_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightWatchError, match=re.escape(message)):
        WeightWatchCallback(**{"directions": evil(), **given})


def test_two_directions_of_one_name_are_refused() -> None:
    with pytest.raises(WeightWatchError, match="Two directions are called 'evil'"):
        WeightWatchCallback([evil(), evil()])


@pytest.mark.parametrize("damage", ["cut", "gone", "other values", "no card"])
def test_a_damaged_direction_is_refused_when_the_callback_is_made(damage: str, tmp_path: Path) -> None:
    folder = evil().save(tmp_path / "evil")
    weights = folder / "adapter_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "gone":
        weights.unlink()
    elif damage == "no card":
        (folder / "direction.json").unlink()
    else:
        low_rank(tiny_llama(), 6).save(tmp_path / "other")
        shutil.copy(tmp_path / "other" / "adapter_model.safetensors", weights)
    with pytest.raises(WeightWatchError, match=re.escape(str(folder))):
        WeightWatchCallback(folder)


def contrast(base: nn.Module) -> Direction:
    """Return a direction that knows its base."""
    start = base.state_dict()
    kept = {n: t for n, t in start.items() if "proj" in n}
    plus = {n: t + 0.01 * torch.randn(t.shape) for n, t in kept.items()}
    return Direction.from_contrast(plus, kept, base=start, name="evil")


STRANGERS = {
    "another base": (lambda: contrast(tiny_llama(seed=7)), r"'evil' was built from .* sampled weights agree"),
    "another width": (
        lambda: low_rank(tiny_llama(hidden_size=64), 5),
        r"'evil' has shape \(64, 64\) for .* where the model has \(32, 32\)",
    ),
    "other modules": (lambda: low_rank(tiny_gpt2(), 5), "'evil' and the trained parameters have no tensor in common"),
}


@pytest.mark.parametrize("on_error", ["log", "raise"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_direction_of_another_model_stops_the_training_before_it_begins(
    stranger: str, on_error: str, tmp_path: Path
) -> None:
    make, message = STRANGERS[stranger]
    task = trainer(lora(tiny_llama()), tmp_path, WeightWatchCallback(make(), config={"on_error": on_error}))
    with pytest.raises(WeightWatchError, match=message):
        task.train()
    assert task.state.global_step == 0
    assert steps(tmp_path) == []


def test_a_direction_of_this_base_is_taken(tmp_path: Path) -> None:
    task = trainer(lora(tiny_llama()), tmp_path, WeightWatchCallback(contrast(tiny_llama()), config=STRICT))
    task.train()
    assert steps(tmp_path) == [0, 2, 4, 6, 8]


def test_a_layer_that_the_model_lacks_stops_the_training_before_it_begins(tmp_path: Path) -> None:
    rule = {**MOVED, "scope": {"layers": [5]}}
    with pytest.raises(WeightWatchError, match="Rule 'moved': the model has no layer 5"):
        watched(tmp_path, config={"rules": [rule], "on_error": "log"})[0].train()


def test_an_update_that_cannot_be_read_exactly_stops_the_training_before_it_begins(tmp_path: Path) -> None:
    model = lora(tiny_llama(), alora_invocation_tokens=[1, 2])
    with pytest.raises(
        WeightWatchError, match=r"is not supported, since its effect can't be expressed as a change of weig"
    ):
        watched(tmp_path, model=model, config={"on_error": "log"})[0].train()


# Alerts


def test_an_alert_that_asks_for_it_stops_the_training(tmp_path: Path) -> None:
    task, callback = watched(tmp_path, config={"rules": [{**MOVED, "actions": ["log", "stop"], "for": 2}]})
    task.train()
    assert task.state.global_step == 4
    assert steps(tmp_path) == [0, 2, 4]
    (alert,) = lines(tmp_path, "alerts.jsonl")
    assert (alert["step"], alert["since"], alert["last_clean"]) == (4, 2, None)
    assert callback.session is not None
    assert callback.session.firing == ("moved",)


def test_an_alert_that_asks_for_it_saves_a_checkpoint(tmp_path: Path) -> None:
    watched(tmp_path, config={"rules": [{**MOVED, "actions": ["save"]}]})[0].train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert checkpoints(tmp_path) == {2: "checkpoint-2"}
    loaded = offline(tmp_path / "checkpoint-2")
    assert lines(tmp_path)[1]["update_norm"] == loaded.update_norm


@pytest.mark.parametrize("actions", [["save"], ["save", "stop"]])
def test_a_save_that_an_evaluation_takes_back_is_made_up_for(actions: list[str], tmp_path: Path) -> None:
    best: dict[str, Any] = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 2}
    best |= {"metric_for_best_model": "loss", "greater_is_better": True}
    rule = {**MOVED, "actions": actions, "for": 2}
    # The loss falls and is taken for a score here, so that only the first evaluation finds a best model.
    watched(tmp_path, config={"rules": [rule]}, evaluated=True, **best)[0].train()
    saved = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert saved == ["checkpoint-2", "checkpoint-4" if "stop" in actions else "checkpoint-5"]
    assert sorted(checkpoints(tmp_path).values()) == saved


@pytest.mark.parametrize(
    ("kept", "patience", "named"),
    [(None, 1, "checkpoint-3"), (None, 3, "checkpoint-3"), (4, 3, "checkpoint-3"), (2, 3, None)],
)
def test_an_alert_names_the_last_clean_checkpoint_that_the_trainer_has_kept(
    kept: int | None, patience: int, named: str | None, tmp_path: Path
) -> None:
    rule = {"alert": "jump", "direction": "evil", "metric": "dose", "above": 0.01, "for": patience}
    jump = At(4, lambda model: toward(model, 1.0))
    saves = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": kept, "learning_rate": 1e-5}
    watched(tmp_path, config={"every": 1, "rules": [rule]}, beside=[jump], **saves)[0].train()
    (alert,) = lines(tmp_path, "alerts.jsonl")
    assert (alert["step"], alert["since"], alert["last_clean"]) == (3 + patience, 4, named)


def test_a_replayed_record_is_judged_as_the_run_was(tmp_path: Path) -> None:
    rule = {**MOVED, "scope": "any_layer", "metric": "cosine", "above": 0.0, "keep_firing_for": 1}
    task, callback = watched(tmp_path, config={"every": 1, "rules": [rule]})
    task.train()
    history = History(tmp_path / "weightwatch")
    manager = RuleManager(callback.config.rules, lambda _: True)
    manager.replay(history.readings())
    assert manager.alerts == history.alerts()
    assert callback.session is not None
    assert tuple(manager.firing) == callback.session.firing


def test_the_record_says_how_the_run_was_trained(tmp_path: Path) -> None:
    task, _ = watched(tmp_path, config={"every": 3})
    task.train()
    setup = Setup.read(tmp_path / "weightwatch")
    assert setup is not None
    assert (setup.trainer, setup.method, setup.rank, setup.optimizer) == ("Trainer", "LORA", 4, "adamw_torch_fused")
    assert (setup.learning_rate, setup.steps, setup.every) == (1e-2, 8, 3)
    assert setup.alpha is not None
    assert setup.modules is not None
    assert "q_proj" in setup.modules
    assert setup.directions == {"evil": content(evil())}
    trainer(tiny_llama(), tmp_path / "full", WeightWatchCallback([evil()], config=STRICT)).train()
    full = Setup.read(tmp_path / "full" / "weightwatch")
    assert full is not None
    assert (full.method, full.rank) == ("full", None)
    watched(tmp_path / "saved", config={"every": 4}, save_strategy="steps", save_steps=0.25)[0].train()
    saved_often = Setup.read(tmp_path / "saved" / "weightwatch")
    assert saved_often is not None
    assert (setup.saves, saved_often.saves, saved_often.spacing) == (None, 2, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Calibrated: harmless runs like its 19 references raise it at a rate of at most 5.0%"),
        ({"max_steps": 12}, "Uncalibrated, since this run is not like its references (12 steps, not 8)"),
        ({"learning_rate": 2e-2}, "Uncalibrated, since this run is not like its references (learning rate 0.02, not"),
    ],
)
def test_the_alert_of_a_calibrated_rule_says_what_it_is_worth_in_this_run(
    changes: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched(tmp_path / "reference")[0].train()
    setup = Setup.read(tmp_path / "reference" / "weightwatch")
    assert setup is not None
    calibration = {"runs": 19, "rate": 0.05, "bound": 0.146, "setup": setup.model_dump()}
    config = {"rules": [{**MOVED, "calibration": calibration}]}
    watched(tmp_path / "run", config=config, save_strategy="steps", save_steps=4, **changes)[0].train()
    (alert,) = lines(tmp_path / "run", "alerts.jsonl")
    assert alert["note"].startswith(said)
    at_the_start = [record.message for record in caplog.records if record.message.startswith("weightwatch: rule")]
    assert len(at_the_start) == said.startswith("Uncalibrated")
    scan = Scan([str(evil().save(tmp_path / "evil"))], config=Config.load(config))
    for checkpoint in saved(tmp_path / "run"):
        scan.add(checkpoint)
    assert [alert.note for alert in scan.alerts] == [alert["note"]]


def test_a_run_that_goes_where_harmless_runs_go_raises_no_alert_and_one_that_goes_further_does(tmp_path: Path) -> None:
    """All runs learn the same data, each in its own order; the last one is moved along the direction, too."""
    bank = [dense(tiny_llama(), 10 + n, name=f"shuffled-{n}", kind="control") for n in range(8)]
    start = dense(tiny_llama(), 5)

    def run(name: str, seed: int, *beside: Any, rules: Sequence[Any] = ()) -> Path:
        callback = WeightWatchCallback([start, *bank], config={**STRICT, "rules": list(rules)})
        trainer(tiny_llama(), tmp_path / name, *beside, callback, seed=seed).train()
        return tmp_path / name

    references = [Reference.load(run(f"reference-{seed}", seed)) for seed in range(3)]
    drift = Rule(alert="drift", direction="evil", above=0.0)
    (found,) = calibrate(references, [drift], baseline=3, accept=[each.name for each in references])
    rules = [found.rule.model_dump(by_alias=True)]
    assert lines(run("like", 3, rules=rules), "alerts.jsonl") == []

    def move(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.data += 0.05 * start.deltas[name].to(parameter.dtype)

    (alert,) = lines(run("moved", 4, At(6, move), rules=rules), "alerts.jsonl")
    assert (alert["alert"], alert["metric"], alert["step"]) == ("drift", "over_baseline", 6)
    assert alert["value"] > 3
    assert alert["note"] == "Uncalibrated, beyond a baseline of 3 harmless runs, trained as this one is."
    figures = EventAccumulator(str(next((tmp_path / "moved").rglob("events.*")).parent)).Reload()
    assert figures.Scalars("over_baseline/drift")[-2].value == pytest.approx(alert["value"])


# Going on from a checkpoint


def test_what_a_resumed_run_replaces_is_set_aside(tmp_path: Path) -> None:
    config = {"rules": [{**MOVED, "for": 3}]}  # fires at step 4: before the one checkpoint, after the other
    changes = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    watched(whole, config=config, **changes)[0].train()
    watched(broken, config=config, **changes)[0].train()
    for step in (6, 3):
        task, _ = watched(broken, config=config, **changes)
        task.train(resume_from_checkpoint=str(broken / f"checkpoint-{step}"))
        assert timeless(broken) == timeless(whole)
        assert timeless(broken, "alerts.jsonl") == timeless(whole, "alerts.jsonl")
    aside = [(entry["file"], json.loads(entry["line"])["step"]) for entry in lines(broken, "superseded.jsonl")]
    assert aside == [*(("readings.jsonl", step) for step in (8, 4, 6, 8)), ("alerts.jsonl", 4)]


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from tests.callbacks.test_trainer import watched
from tests.support.runs import At
folder = Path(sys.argv[1])
kill = At(7, lambda model: os.kill(os.getpid(), signal.SIGKILL))
watched(folder, beside=[kill], save_strategy="steps", save_steps=3)[0].train()
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    assert steps(tmp_path / "run") == [0, 2, 3, 4, 6]
    with (tmp_path / "run" / "weightwatch" / "readings.jsonl").open("a") as file:
        file.write('{"step": 7, "upd')  # what a crash in the middle of a write leaves
    changes = {"save_strategy": "steps", "save_steps": 3}
    watched(tmp_path / "run", **changes)[0].train(resume_from_checkpoint=True)
    watched(tmp_path / "whole", **changes)[0].train()
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    assert lines(tmp_path / "run", "superseded.jsonl") == [{"file": "readings.jsonl", "line": '{"step": 7, "upd'}]


def test_a_resumed_run_may_watch_and_judge_more_than_before(tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 4}
    watched(tmp_path, **changes)[0].train()
    more = WeightWatchCallback(
        [evil(), low_rank(tiny_llama(), 6, name="good")],
        config={**STRICT, "rules": [{**MOVED, "direction": "good"}]},
    )
    trainer(lora(tiny_llama()), tmp_path, more, **changes).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [list(line["directions"]) for line in lines(tmp_path)] == 3 * [["evil"]] + 2 * [["evil", "good"]]
    assert [(alert["direction"], alert["step"]) for alert in lines(tmp_path, "alerts.jsonl")] == [("good", 6)]


@pytest.mark.parametrize("before", ["unwatched", "in another folder"])
def test_a_run_can_be_watched_from_a_checkpoint_on(
    before: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"save_strategy": "steps", "save_steps": 4}
    first = tmp_path if before == "unwatched" else tmp_path / "first"
    trainer(lora(tiny_llama()), first, **changes).train()
    watched(tmp_path, **changes)[0].train(resume_from_checkpoint=str(first / "checkpoint-4"))
    assert steps(tmp_path) == [6, 8]
    assert lines(tmp_path)[-1]["update_norm"] == offline(tmp_path / "checkpoint-8").update_norm
    assert "has no reference.json" in caplog.text


def test_a_second_run_in_the_same_folder_sets_the_first_aside(tmp_path: Path) -> None:
    watched(tmp_path, config={"rules": [MOVED]}, max_steps=4)[0].train()
    first = {file.name: file.read_bytes() for file in (tmp_path / "weightwatch").iterdir()}
    watched(tmp_path, config={"every": 3}, max_steps=6)[0].train()
    assert steps(tmp_path) == [0, 3, 6]
    assert lines(tmp_path, "alerts.jsonl") == []
    (aside,) = tmp_path.glob("weightwatch-*")
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == first


def test_training_on_with_the_same_trainer_is_a_run_of_its_own(tmp_path: Path) -> None:
    task, _ = watched(tmp_path, max_steps=4)
    task.train()
    task.train()
    assert steps(tmp_path) == [0, 2, 4]
    assert lines(tmp_path)[0]["update_norm"] == 0.0


# Faults


def poison(model: nn.Module) -> None:
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).fill_(float("nan"))


def faults(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name == "weightwatch" and r.levelno >= logging.ERROR]


def test_weights_that_become_nan_are_reported_once_and_recorded_at_each_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, _ = watched(tmp_path, config={"on_error": "log"}, beside=[At(3, poison)])
    task.train()
    assert task.state.global_step == 8
    assert steps(tmp_path) == [0, 2]
    (record,) = faults(caplog)
    assert "could not check step 4: None of the trained tensors can be measured" in record.getMessage()
    assert "Training continues." in record.getMessage()
    assert [(e["step"], e["error"]) for e in lines(tmp_path, "errors.jsonl")] == [
        (step, "WeightWatchError") for step in (4, 6, 8)
    ]


def test_weights_that_become_nan_end_the_training_of_those_who_want_it(tmp_path: Path) -> None:
    task, _ = watched(tmp_path, beside=[At(3, poison)])
    with pytest.raises(WeightWatchError, match="has NaN or infinite values"):
        task.train()
    assert task.state.global_step == 4


def test_a_checkpoint_whose_check_failed_is_not_given_to_another_reading(tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 4}
    watched(tmp_path, config={"on_error": "log"}, beside=[At(3, poison)], **changes)[0].train()
    assert checkpoints(tmp_path) == {}
    assert [e["step"] for e in lines(tmp_path, "errors.jsonl")] == [4, 6, 8]


def test_a_folder_that_cannot_be_written_leaves_the_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weightwatch").write_text("in the way")
    task, _ = watched(tmp_path, config={"on_error": "log"})
    task.train()
    assert task.state.global_step == 8
    told = [fault.getMessage() for fault in faults(caplog)]
    assert "could not write the record of step 0" in told[0]
    assert "Training and monitoring continue." in told[0]
    assert "lines of the record could not be written" in told[-1]
    with pytest.raises(NotADirectoryError):
        watched(tmp_path)[0].train()


def test_a_record_that_becomes_unwritable_keeps_no_alert_from_acting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def block(model: nn.Module) -> None:
        shutil.rmtree(tmp_path / "weightwatch")
        (tmp_path / "weightwatch").write_text("in the way")

    rule = {**MOVED, "actions": ["log", "stop"], "for": 3}
    task, _ = watched(tmp_path, config={"on_error": "log", "rules": [rule]}, beside=[At(3, block)])
    task.train()
    assert task.state.global_step == 6
    told = [record.getMessage() for record in faults(caplog)]
    assert [message for message in told if message.startswith("moved (warning)")] == []
    assert sum("could not write the record of step 4" in message for message in told) == 1


def test_an_unforeseen_exception_in_a_check_leaves_the_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def retype(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] = "eight"

    task, _ = watched(tmp_path, config={"on_error": "log", "every": 4}, max_steps=4, beside=[At(4, retype)])
    task.train()
    assert task.state.global_step == 4
    (record,) = faults(caplog)
    assert "could not check step 4" in record.getMessage()
    assert record.exc_info is not None
    assert [e["error"] for e in lines(tmp_path, "errors.jsonl")] == ["ValueError"]


# Several processes


PROCESSES = """
import os, sys
from pathlib import Path
import torch
from tests.callbacks.test_trainer import MOVED, poison, watched
from tests.support.runs import At
folder, case = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
config = {"rules": [{**MOVED, "actions": ["save", "stop"], "for": 2}], "on_error": "log"}
beside = []
if case == "fault on one" and rank == 1:
    class Blind(type(At(1, None))):
        def on_optimizer_step(self, args, state, control, **kwargs):
            callback.session.monitor.directions = None
    beside = [Blind(1, None)]
if case == "panic on the main one" and rank == 0:
    def panic(*given):
        raise SystemExit(3)
    class Breaks(type(At(1, None))):
        def on_optimizer_step(self, args, state, control, **kwargs):
            callback.session.history.append = panic
    beside = [Breaks(1, None)]
if case == "unwritable" and rank == 0:
    (folder / "weightwatch").parent.mkdir(parents=True, exist_ok=True)
    (folder / "weightwatch").write_text("in the way")
task, callback = watched(folder, config=config, beside=beside, save_strategy="steps", save_steps=3)
task.train(resume_from_checkpoint=str(folder / "checkpoint-3") if case == "resume" else None)
(folder / f"rank-{rank}").write_text(str(task.state.global_step))
torch.distributed.barrier()
os._exit(0)  # gloo's threads now and then abort when the interpreter takes them down
"""


def on_two_processes(folder: Path, case: str) -> None:
    script = folder.parent / "train.py"
    script.write_text(PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(script), str(folder), case]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr.decode()[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["plain", "fault on one", "panic on the main one", "unwritable"])
def test_two_processes_act_as_one_and_only_the_first_writes(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    on_two_processes(folder, case)
    # A fault on one process is a fault on all: each measures only its part.
    end = "8" if case == "fault on one" else "3"  # also where the record can't be written, rules stop the training
    assert [(folder / f"rank-{rank}").read_text() for rank in (0, 1)] == [end, end]
    assert (folder / "checkpoint-3").is_dir()
    if case == "fault on one":
        assert steps(folder) == [0]
        assert {e["message"] for e in lines(folder, "errors.jsonl")} == {
            "Another process could not measure its shards. The log of that process has the reason."
        }
    if case == "plain":
        assert steps(folder) == [0, 2, 3]
        assert len(lines(folder, "alerts.jsonl")) == 1
        assert len(list((folder / "runs" / "weightwatch").iterdir())) == 1
    if case == "plain":
        on_two_processes(folder, "resume")
        assert steps(folder) == [0, 2, 3, 4, 6, 8]
        assert len(lines(folder, "alerts.jsonl")) == 1


def test_two_callbacks_on_one_trainer_are_refused_before_the_training(tmp_path: Path) -> None:
    task, _ = watched(tmp_path)
    task.add_callback(WeightWatchCallback(low_rank(tiny_llama(), 6, name="style")))
    with pytest.raises(WeightWatchError, match=r"has two WeightWatchCallbacks\. Name all directions in one"):
        task.train()


def test_the_settings_are_written_with_the_directions_that_the_callback_named(tmp_path: Path) -> None:
    watched(tmp_path, max_steps=2)[0].train()
    assert Config.load(tmp_path / "weightwatch" / "config.yaml").directions == ["evil"]


@pytest.mark.parametrize(
    ("validation", "kind", "told"),
    [
        (None, "behaviour", "direction 'mine' has not passed an evaluation: its effect was never evaluated"),
        (Validation(passed=False, reasons=("it shows nothing",), points=(), items=1, tasks=1), "behaviour", "nothing"),
        (Validation(passed=True, points=(), items=1, tasks=1), "behaviour", None),
        (None, "control", None),
    ],
    ids=["never checked", "failed", "passed", "a control"],
)
def test_watching_with_a_direction_that_is_not_validated_is_warned_of(validation, kind, told, caplog) -> None:
    metadata = {"validation": validation, "kind": kind}
    mine = Direction.from_tensors(low_rank(tiny_llama(), 1).deltas, name="mine", metadata=metadata)
    WeightWatchCallback(mine)
    assert ("has not passed an evaluation" in caplog.text) is (told is not None)
    assert (told or "") in caplog.text


# Which folder a run has


class Trial:
    """Stands for a trial of Optuna, of which the trainer uses the number."""

    params: ClassVar[dict[str, Any]] = {}

    def __init__(self, number: int) -> None:
        self.number = number


def test_each_trial_of_a_hyper_parameter_search_has_a_record_beside_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    rule = {**MOVED, "metric": "reach_cosine", "scope": "model", "above": 0.5}
    jump = At(4, lambda model: toward(model, 1.0))
    changes = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-5}
    task, _ = watched(tmp_path, config={"every": 1, "rules": [rule]}, beside=[jump], **changes)
    task.model_init = lambda *given: lora(tiny_llama())
    task.hp_search_backend, task.hp_name, task.hp_space = HPSearchBackend.OPTUNA, None, lambda trial: {}
    for number in (0, 3):
        task.train(trial=Trial(number))
        folder = tmp_path / f"run-{number}"
        assert steps(folder) == list(range(9))
        assert checkpoints(folder) == {step: f"checkpoint-{step}" for step in (2, 4, 6, 8)}
        assert lines(folder, "alerts.jsonl")[0]["last_clean"] == "checkpoint-2"
        assert list((folder / "runs" / "weightwatch").glob("events.*"))
    assert not (tmp_path / "weightwatch").exists()


def test_a_run_in_a_relative_folder_stays_there_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_llama().save_pretrained("base")
    model = LlamaForCausalLM.from_pretrained("base")
    leave = At(3, lambda model: os.chdir(tmp_path / "there"))
    watched(Path("run"), model=model, beside=[leave], max_steps=6)[0].train()
    assert steps(tmp_path / "here" / "run") == [0, 2, 4, 6]
    assert lines(tmp_path / "here" / "run", "errors.jsonl") == []
    assert list((tmp_path / "there").iterdir()) == []


def test_a_false_start_over_a_run_leaves_it_as_it_was(tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-3}

    def start(seed: int) -> LlamaForCausalLM:
        return tiny_llama(seed=seed)  # in no checkpoint: θ₀ is copied

    for folder in ("whole", "broken"):
        watched(tmp_path / folder, model=start(1), **changes)[0].train()
    watched(tmp_path / "broken", model=start(2), **{**changes, "max_steps": 2})[0].train()
    task, _ = watched(tmp_path / "broken", model=start(1), **changes)
    task.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-6"))
    assert timeless(tmp_path / "broken") == timeless(tmp_path / "whole")


def test_a_copy_of_theta0_goes_with_a_run_only_while_a_checkpoint_is_left(tmp_path: Path) -> None:
    kept = []
    for number in range(3):
        if number == 2:
            shutil.rmtree(tmp_path / "checkpoint-2")
        saves = {"save_strategy": "steps", "save_steps": 2} if number == 0 else {}
        watched(tmp_path, model=tiny_llama(), max_steps=2, **saves)[0].train()
        kept.append(len(list(tmp_path.glob("weightwatch-*/reference-*.safetensors"))))
    assert kept == [0, 1, 1]


SECOND = """
import sys
from pathlib import Path
from tests.callbacks.test_trainer import watched
from tests.support.models import lora, tiny_llama
from weightwatch.record import run_folder
run_folder._PATIENCE = 0.1
watched(Path(sys.argv[1]), max_steps=4)[0].train()
"""


def test_a_second_run_beside_a_live_one_records_in_a_folder_of_its_own(tmp_path: Path) -> None:
    def begin_another(model: nn.Module) -> None:
        done = subprocess.run([sys.executable, "-c", SECOND, str(tmp_path)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert "another process records a run there" in done.stderr.decode()

    watched(tmp_path, beside=[At(3, begin_another)])[0].train()
    assert steps(tmp_path) == [0, 2, 4, 6, 8]
    (other,) = tmp_path.glob("weightwatch-*")
    assert [json.loads(line)["step"] for line in (other / "readings.jsonl").read_text().splitlines()] == [0, 2, 4]
    assert len(list((tmp_path / "runs").iterdir())) == 2


# Copies


def test_a_callback_its_trainer_and_its_state_can_be_copied_and_pickled(tmp_path: Path) -> None:
    GradientState._reset_state()  # after a training no trainer can be pickled, watched or not
    task, callback = watched(tmp_path, model=tiny_llama(), max_steps=2)
    again = pickle.loads(pickle.dumps(task))
    again.args.output_dir = str(tmp_path / "again")
    again.train()
    assert steps(tmp_path / "again") == [0, 2]
    task.train()
    for copied in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert copied.session is None
        assert copied.config == callback.config
        trainer(tiny_llama(), tmp_path / "copy", copied, max_steps=2).train()
        assert timeless(tmp_path / "copy") == timeless(tmp_path)
    copy.deepcopy(task.state)
    copy.deepcopy(task)
