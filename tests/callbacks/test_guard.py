"""Real trainings with a guard: what it keeps out, what it costs whoever only watches, and what ends it."""

import copy
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from tests.callbacks.test_resume import SmallMemory
from tests.callbacks.test_trl import made
from tests.support.models import lora, tiny_llama
from tests.support.runs import STRICT, At, lines, sequences, settings, steps, timeless, trainer
from weightwatch import Config, Direction, Monitor, WeightWatchCallback, WeightWatchError, watch
from weightwatch.guard.guard import Guard
from weightwatch.guard.preventative import _added
from weightwatch.plan import Plan

MOVED = {"alert": "moved", "direction": "evil", "metric": "dose", "above": -1e9, "actions": ["log", "guard"]}
"""Switches the guard on at the first check at which anything has moved."""
UPDATE = {"mode": "update", "budget": 0.02}
BY_ALERT = {**UPDATE, "when": "alert"}
CLOSE = 1e-4  # of fp32 weights, over their movement


@cache
def learned(name: str, seed: int = 0, kind: str = "behaviour") -> Direction:
    """Return where unguarded trainings of the tiny model lead, one of its weights and one of an adapter.

    Args:
        name: Name of the direction.
        seed: Of the data. 0 is that of the trainings here.
        kind: Kind of the direction.
    """
    start, moved = dict(tiny_llama().named_parameters()), {}
    for model in (tiny_llama(), lora(tiny_llama())):
        with TemporaryDirectory() as folder:
            task = trainer(model, Path(folder))
            task.train_dataset = sequences(seed=seed)
            task.train()
        plain = model.merge_and_unload() if isinstance(model, PeftModel) else model
        change = {n: (p - start[n]).detach() for n, p in plain.named_parameters() if "proj" in n}
        size = torch.cat([each.flatten() for each in change.values()]).norm()
        moved = {n: each / size + moved.get(n, 0.0) for n, each in change.items()}
    return Direction.from_tensors(moved, name=name, metadata={"kind": kind})


def evil() -> Direction:
    return learned("evil")


def witness() -> Direction:
    return learned("evil-2", seed=1)


def adapted() -> nn.Module:
    return lora(tiny_llama())


def watched(guard: dict[str, Any] | None = None, **config: Any) -> WeightWatchCallback:
    chosen = {} if guard is None else {"guard": {"witness": "evil-2", **guard}}
    if guard is not None and guard.get("when") == "alert":
        config.setdefault("rules", [MOVED])
    return WeightWatchCallback([evil(), witness()], config={**STRICT, "tensorboard": False, **chosen, **config})


def dose(folder: Path, direction: str = "evil") -> float:
    return float(lines(folder)[-1]["directions"][direction]["dose"])


def taken(folder: Path) -> float:
    return float(sum(line["guard"]["dose"]["evil"] for line in lines(folder)))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = weights(model), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def unhooked(model: nn.Module) -> bool:
    return not added(model)


def added(model: nn.Module) -> list[int]:
    """Return how many hooks of the guard each layer has that has any."""
    hooks = ([h for h in m._forward_hooks.values() if getattr(h, "func", None) is _added] for m in model.modules())
    return [len(found) for found in hooks if found]


# What is kept out

START: dict[str, Callable[[], nn.Module]] = {"LoRA": adapted, "full": tiny_llama}
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 3},
    "bf16 autocast": {"bf16": True},
    "compiled": COMPILED,  # of full weights: compiling takes as long as all other tests together
    "gradients checkpointed": CHECKPOINTED,
    "unclipped": {"max_grad_norm": 0.0},
    "SGD with momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.3},
}


@pytest.mark.parametrize(
    ("name", "start"), [(name, start) for name in SETTINGS for start in START if (name, start) != ("compiled", "LoRA")]
)
def test_the_dose_of_the_guarded_direction_stays_within_the_budget(name: str, start: str, tmp_path: Path) -> None:
    model = START[start]()
    task = trainer(model, tmp_path, watched(UPDATE), **SETTINGS[name])
    task.train()
    assert task.state.global_step == 8
    assert taken(tmp_path) > 0.02
    assert dose(tmp_path) <= 0.02 + CLOSE
    assert lines(tmp_path, "errors.jsonl") == []
    assert unhooked(model)


def test_without_the_guard_the_dose_goes_past_that_budget(tmp_path: Path) -> None:
    trainer(adapted(), tmp_path / "LoRA", watched()).train()
    trainer(tiny_llama(), tmp_path / "full", watched()).train()
    assert dose(tmp_path / "LoRA") > 0.04
    assert dose(tmp_path / "full") > 0.04


@pytest.mark.parametrize("kind", ["SFT", "DPO", "KTO", "GRPO", "RLOO", "Reward", "Distillation"])
def test_every_trainer_of_trl_trains_with_a_guard(kind: str, tmp_path: Path) -> None:
    from tests.callbacks.test_trl import base, fitting

    task = made(kind, tmp_path, base(kind), adapter=fitting(kind))
    task.add_callback(watched({"mode": "update", "budget": 0.0005}))
    task.train()
    assert task.state.global_step == 4
    assert taken(tmp_path) > 0
    assert dose(tmp_path) <= 0.0005 + CLOSE
    assert lines(tmp_path)[-1]["guard"]["steps"] == 2


@pytest.mark.parametrize("mode", ["subspace", "gradient", "preventative"])
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_the_other_modes_train_with_trl_too(kind: str, mode: str, tmp_path: Path) -> None:
    task = made(kind, tmp_path, tiny_llama())
    task.add_callback(watched({"mode": mode}))
    task.train()
    assert task.state.global_step == 4
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 2, 2]
    assert unhooked(task.model)


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("mode", ["subspace", "gradient", "preventative"])
def test_the_other_modes_lower_the_dose(mode: str, start: str, tmp_path: Path) -> None:
    trainer(START[start](), tmp_path / "bare", watched()).train()
    trainer(START[start](), tmp_path / "guarded", watched({"mode": mode})).train()
    assert dose(tmp_path / "guarded") < 0.7 * dose(tmp_path / "bare")


@pytest.mark.parametrize("start", START)
def test_the_model_that_is_saved_after_the_training_meets_the_budget_of_mode_checkpoint(
    start: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO", logger="weightwatch")
    model = START[start]()
    before = {name: p.detach().clone() for name, p in tiny_llama().named_parameters()}
    callback = watched({"mode": "checkpoint", "budget": 0.01}, summary=True)
    task = trainer(model, tmp_path, callback, save_strategy="steps", save_steps=8)
    task.train()
    assert dose(tmp_path) > 0.04  # the last checkpoint is as it was trained
    left = Monitor([evil()], reference=None if start == "LoRA" else before).measure(task.model)
    assert left["evil"].dose <= 0.01 + CLOSE
    task.save_model(str(tmp_path / "saved"))
    assert "the guard took back" in caplog.text
    out = capsys.readouterr().out
    assert f"the guard (mode: checkpoint) took back a dose of {dose(tmp_path) - left['evil'].dose:.2f}" in out
    assert f"{left['evil'].dose:+.3f}" in out  # the closing table is of the weights that are left


# Watching changes nothing


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("kind", ["watched", "with a guard that is never armed"])
def test_who_only_watches_trains_as_without_watching_to_the_last_bit(kind: str, start: str, tmp_path: Path) -> None:
    never = {**MOVED, "above": 1e9}
    guard = {**BY_ALERT, "budget": 0.0} if kind != "watched" else None
    callback = watched(guard, rules=[never] if guard else [])
    results = []
    for beside in ([callback], []):
        model = START[start]()
        trainer(model, tmp_path / str(len(beside)), *beside).train()
        results.append(model)
    assert_same_weights(*results)
    if guard:
        assert {line["guard"]["steps"] for line in lines(tmp_path / "1")} == {0}
        assert taken(tmp_path / "1") == 0


# Armed by an alert


def test_a_guard_that_an_alert_switches_on_is_on_from_the_next_step(tmp_path: Path) -> None:
    trainer(adapted(), tmp_path, watched(BY_ALERT, every=3)).train()
    assert [alert["step"] for alert in lines(tmp_path, "alerts.jsonl")] == [3]
    assert steps(tmp_path) == [0, 3, 6, 8]
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 0, 3, 2]
    assert dose(tmp_path) <= 0.02 + CLOSE


@pytest.mark.parametrize("mode", ["gradient", "subspace", "preventative"])
def test_each_mode_can_be_switched_on_by_an_alert(mode: str, tmp_path: Path) -> None:
    model = adapted()
    trainer(model, tmp_path, watched({"mode": mode, "when": "alert"})).train()
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 0, 2, 2, 2]
    assert unhooked(model)


def test_what_is_added_in_the_course_of_a_compiled_training_is_added(tmp_path: Path) -> None:
    results = []
    for name, changes in (("compiled", COMPILED), ("eager", {})):
        callback = watched({"mode": "preventative", "when": "alert"})
        trainer(tiny_llama(), tmp_path / name, callback, max_steps=4, **changes).train()
        results.append(dose(tmp_path / name))
    assert results[0] == pytest.approx(results[1], rel=1e-2)


# Going on from a checkpoint

GUARDS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "update": (UPDATE, []),
    "update over the model": ({**UPDATE, "per": "model", "both_ways": True}, []),
    "subspace": ({"mode": "subspace", "rank": 2}, []),
    "gradient": ({"mode": "gradient"}, []),
    "preventative": ({"mode": "preventative"}, []),
    "checkpoint": ({"mode": "checkpoint"}, []),
    "armed before the checkpoint": (BY_ALERT, [{**MOVED, "for": 1}]),
    "armed at the checkpoint": (BY_ALERT, [{**MOVED, "for": 2}]),
    "armed after the checkpoint": (BY_ALERT, [{**MOVED, "for": 3}]),
    "added before the checkpoint": ({"mode": "preventative", "when": "alert"}, [{**MOVED, "for": 1}]),
}


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("name", GUARDS)
def test_a_guarded_run_that_goes_on_equals_one_that_was_never_stopped(name: str, start: str, tmp_path: Path) -> None:
    guard, rules = GUARDS[name]
    saves = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 4}

    def run(folder: Path, resume: str | None = None) -> tuple[nn.Module, str]:
        model = START[start]()
        callback = watched(guard, rules=rules, summary=False)
        trainer(model, folder, callback, **saves).train(resume_from_checkpoint=resume)
        assert callback.session is not None
        return model, repr(callback.session._state.taken)

    whole, sums = run(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    again, sums_again = run(tmp_path / "again", str(tmp_path / "again" / "checkpoint-3"))
    assert_same_weights(again, whole)
    for file in ("readings.jsonl", "alerts.jsonl"):
        assert timeless(tmp_path / "again", file) == timeless(tmp_path / "whole", file)
    assert sums_again == sums
    assert [line["step"] for line in lines(tmp_path / "again") if line["checkpoint"]] == [3, 6, 8]
    assert all("guard" in line for line in lines(tmp_path / "again"))  # amended ones too


@pytest.mark.parametrize("mode", ["update", "preventative"])
def test_a_training_that_begins_again_with_smaller_batches_is_guarded_once_and_from_its_first_beginning(
    mode: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    before = copy.deepcopy(model)
    hooks: list[int] = []
    count = At(2, lambda model: hooks.append(max(added(model), default=0)))
    args = TrainingArguments(**settings(tmp_path, auto_find_batch_size=True))
    guard = UPDATE if mode == "update" else {"mode": mode}
    task = SmallMemory(model, args, train_dataset=sequences(), callbacks=[watched(guard), count])
    task.train()
    assert hooks == [0, 0] if mode == "update" else [1, 1]
    assert lines(tmp_path)[0]["update_norm"] > 0  # three steps of the first attempt
    assert steps(tmp_path) == [0, 2, 4, 6, 8]
    start = {name: p.detach() for name, p in before.named_parameters()}
    found = Monitor([evil()], reference=start).measure(model)
    assert found["evil"].dose == pytest.approx(dose(tmp_path), rel=1e-4)
    assert mode != "update" or found["evil"].dose <= 0.02 + CLOSE
    assert unhooked(model)


def test_a_training_that_begins_again_with_smaller_batches_stays_armed(tmp_path: Path) -> None:
    args = TrainingArguments(**settings(tmp_path, auto_find_batch_size=True))
    callback = watched(BY_ALERT, every=1, rules=[{**MOVED, "for": 2}])
    task = SmallMemory(adapted(), args, train_dataset=sequences(), callbacks=[callback])
    task.train()
    assert [alert["step"] for alert in lines(tmp_path, "alerts.jsonl")] == [1]  # the rule begins anew
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, *[1] * 8]


def test_training_on_is_guarded_from_where_it_begins(tmp_path: Path) -> None:
    task = trainer(adapted(), tmp_path, watched(UPDATE))
    for _ in range(2):
        task.train()
        assert lines(tmp_path)[0]["update_norm"] == 0.0
        assert dose(tmp_path) <= 0.02 + CLOSE
        assert taken(tmp_path) > 0


@pytest.mark.parametrize("mode", ["update", "preventative"])
def test_a_callback_guards_the_training_of_another_trainer_as_the_first(mode: str, tmp_path: Path) -> None:
    callback, models = watched({"mode": mode}), [adapted(), adapted()]
    for number, model in enumerate(models):
        trainer(model, tmp_path / str(number), callback).train()
    assert_same_weights(*models)
    assert timeless(tmp_path / "0") == timeless(tmp_path / "1")
    assert all(unhooked(model) for model in models)


# Faults


def fails(error: BaseException) -> Callable[..., None]:
    def act(*given: Any, **named: Any) -> None:
        raise error

    return act


def break_guard(step: int, error: BaseException, callback: WeightWatchCallback) -> TrainerCallback:
    """Let the guard fail at a step, whatever its mode."""

    def fail() -> None:
        raise error

    def act(model: nn.Module) -> None:
        assert callback.session is not None
        guard = callback.session._guarding._guard
        assert guard is not None
        guard.before_step = guard.after_step = fail  # type: ignore[method-assign]  # that is the fault

    return At(step, act)


@pytest.mark.parametrize("mode", ["update", "preventative"])
def test_a_fault_of_the_guard_stops_the_training_with_an_error_that_names_the_step_and_the_way_out(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    callback, model = watched({"mode": mode}, summary=True), adapted()
    task = trainer(model, tmp_path, break_guard(5, RuntimeError("no room"), callback), callback)
    caplog.clear()
    with pytest.raises(
        WeightWatchError, match=r"^The guard failed at step 5: no room\. .*Set `on_guard_error: continue`"
    ):
        task.train()
    assert task.state.global_step == 4
    assert steps(tmp_path) == [0, 2, 4]
    assert [(e["step"], e["error"]) for e in lines(tmp_path, "errors.jsonl")] == [(5, "RuntimeError")]
    (alert,) = lines(tmp_path, "alerts.jsonl")
    assert (alert["alert"], alert["step"]) == ("guard-failed", 5)
    assert "guard-failed at 5" in capsys.readouterr().out
    assert [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")] == []  # the error tells it all
    assert unhooked(model)
    assert callback.session is not None
    assert not callback.session.under_way


@pytest.mark.parametrize("mode", ["update", "preventative"])
def test_a_fault_of_the_guard_is_survived_where_that_is_asked_for_with_an_alert_everywhere(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    callback, model = watched({"mode": mode}, summary=True, on_guard_error="continue"), adapted()
    task = trainer(model, tmp_path, break_guard(5, RuntimeError("no room"), callback), callback)
    task.train()
    assert task.state.global_step == 8
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 2, 2, 0, 0]
    assert [(e["step"], e["error"]) for e in lines(tmp_path, "errors.jsonl")] == [(5, "RuntimeError")]
    (alert,) = lines(tmp_path, "alerts.jsonl")
    assert (alert["alert"], alert["severity"], alert["step"]) == ("guard-failed", "critical", 5)
    assert "guard-failed at 5" in capsys.readouterr().out
    assert "guard-failed (critical) at step 5: the guard failed: no room. Training goes on unguarded." in caplog.text
    assert unhooked(model)


@pytest.mark.parametrize("where", ["in a step", "between two steps"])
def test_a_training_that_crashes_leaves_nothing_added_to_the_model(where: str, tmp_path: Path) -> None:
    model, callback = tiny_llama(), watched({"mode": "preventative"})
    task = trainer(
        model, tmp_path, callback, At(3, fails(KeyboardInterrupt())) if where != "in a step" else At(9, print)
    )
    losses = task.compute_loss

    def crash(model: nn.Module, inputs: Any, **named: Any) -> Any:
        found = losses(model, inputs, **named)
        if task.state.global_step == 2 and where == "in a step":
            raise KeyboardInterrupt
        return found

    task.compute_loss = crash
    with pytest.raises(KeyboardInterrupt):
        task.train()
    model.train()
    ids = torch.arange(8)[None]
    assert torch.equal(model(ids).logits, copy.deepcopy(model).eval()(ids).logits)
    task.compute_loss = losses
    task.callback_handler.callbacks = [one for one in task.callback_handler.callbacks if not isinstance(one, At)]
    task.train()  # and guards again what is trained on
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 2, 2, 2, 2]


def poison(model: nn.Module) -> None:
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if p.requires_grad and "proj" in n and "lora_A" not in n).fill_(
            float("nan")
        )


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize("mode", ["update", "subspace"])
def test_a_nan_in_the_weights_stops_the_training_at_that_step(mode: str, start: str, tmp_path: Path) -> None:
    callback = watched({"mode": mode})
    task = trainer(START[start](), tmp_path, At(3, poison), callback)
    with pytest.raises(WeightWatchError, match=r"The guard failed at step 3: .* NaN or infinite"):
        task.train()
    assert task.state.global_step == 2
    assert steps(tmp_path) == [0, 2]


def test_a_failed_guard_is_told_in_the_closing_table_of_a_resumed_run_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saves = {"save_strategy": "steps", "save_steps": 4}
    callback = watched(UPDATE, on_guard_error="continue")
    trainer(adapted(), tmp_path, break_guard(3, RuntimeError("no room"), callback), callback, **saves).train()
    again = watched(UPDATE, on_guard_error="continue", summary=True)
    trainer(adapted(), tmp_path, again, **saves).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "guard-failed at 3" in capsys.readouterr().out
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 2, 0, 2, 2]
    assert len(lines(tmp_path, "alerts.jsonl")) == 1


@pytest.mark.parametrize("on_guard_error", ["stop", "continue"])
@pytest.mark.parametrize("part", ["the guard", "the monitoring"])
def test_a_run_that_cannot_begin_its_guard_begins_unguarded_only_where_that_is_asked_for(
    part: str, on_guard_error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner, method = (Guard, "begin") if part == "the guard" else (Monitor, "read")
    monkeypatch.setattr(owner, method, fails(RuntimeError("no room")))
    task = trainer(adapted(), tmp_path, watched(UPDATE, on_guard_error=on_guard_error, on_error="log"))
    if on_guard_error == "stop":
        with pytest.raises(WeightWatchError, match=r"[Gg]uard .*no room.*Set `on_guard_error: continue`"):
            task.train()
        assert task.state.global_step == 0
        return
    task.train()
    assert task.state.global_step == 8
    if part == "the guard":
        assert [alert["alert"] for alert in lines(tmp_path, "alerts.jsonl")] == ["guard-failed"]
        assert steps(tmp_path) == [0, 2, 4, 6, 8]
        assert "Training goes on unguarded." in caplog.text
    else:
        assert "Training continues without monitoring and without its guard." in caplog.text


def test_a_fault_of_a_check_leaves_the_guard_on_and_says_that_its_witness_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blind = At(3, lambda model: monkeypatch.setattr(Monitor, "read", fails(RuntimeError("no eyes"))))
    seeing = At(7, lambda model: monkeypatch.undo())
    task = trainer(adapted(), tmp_path, blind, seeing, watched(UPDATE, on_error="log"))
    task.train()
    assert steps(tmp_path) == [0, 2, 8]
    assert "could not check step 4: no eyes. Training goes on, guarded as before" in caplog.text
    assert lines(tmp_path)[-1]["guard"]["steps"] == 6  # what was done since the last check that succeeded
    assert dose(tmp_path) <= 0.02 + CLOSE


def test_a_bad_guard_is_refused_before_the_training_whatever_an_error_of_the_guard_may_do(tmp_path: Path) -> None:
    callback = watched({**UPDATE, "layers": [7]}, on_guard_error="continue")
    task = trainer(adapted(), tmp_path, callback)
    with pytest.raises(WeightWatchError, match="guard: the directions have no layer 7"):
        task.train()
    assert task.state.global_step == 0


# The witness


def saved(folder: Path, *directions: Direction) -> list[str]:
    return [str(direction.save(folder / direction.name)) for direction in directions]


def test_a_witness_by_its_path_is_watched_and_the_settings_in_the_record_load_again(tmp_path: Path) -> None:
    guarded, other, style = saved(tmp_path, evil(), witness(), learned("style", seed=2, kind="control"))
    config = {
        **STRICT,
        "directions": [guarded],
        "controls": [style],
        "guard": {"witness": other, "mode": "update", "budget": 0.02},
    }
    trainer(adapted(), tmp_path / "run", WeightWatchCallback(config=config)).train()
    assert list(lines(tmp_path / "run")[-1]["directions"]) == ["evil", "evil-2", "style"]
    assert lines(tmp_path / "run")[-1]["guard"]["dose"].keys() == {"evil"}
    found = Config.load(tmp_path / "run" / "weightwatch" / "config.yaml")
    assert found.guard is not None
    assert (found.directions, found.guard.witness) == ([guarded, other], "evil-2")
    assert [(rule.alert, rule.direction, rule.above) for rule in found.rules] == [("guard-bypassed", "evil-2", 0.02)]
    again = Plan.of(None, found)
    assert again.config == found
    assert [direction.name for direction in again.directions] == ["evil", "evil-2", "style"]


@pytest.mark.parametrize("rises", [True, False])
def test_the_guard_is_called_bypassed_when_its_witness_rises(rises: bool, tmp_path: Path) -> None:
    def bypass(model: nn.Module) -> None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in witness().deltas:
                    parameter += witness().deltas[name]

    push = At(5, bypass if rises else lambda model: None)
    trainer(tiny_llama(), tmp_path, push, watched(UPDATE), learning_rate=1e-4).train()
    raised = [(a["alert"], a["direction"], a["severity"], a["step"]) for a in lines(tmp_path, "alerts.jsonl")]
    assert raised == ([("guard-bypassed", "evil-2", "critical", 6)] if rises else [])
    assert dose(tmp_path) <= 0.02 + CLOSE


def test_a_rule_of_that_name_stands_as_the_user_wrote_it() -> None:
    mine = {"alert": "guard-bypassed", "direction": "evil-2", "metric": "dose", "above": 0.5, "actions": ["stop"]}
    config = watched(UPDATE, rules=[mine]).config
    assert [rule.model_dump(by_alias=True, include=set(mine)) for rule in config.rules] == [mine]


def test_a_guard_can_do_without_a_witness_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**STRICT, "summary": True, "guard": {"witness": "none", "mode": "update"}}
    trainer(adapted(), tmp_path, WeightWatchCallback(evil(), config=config)).train()
    found = Config.load(tmp_path / "weightwatch" / "config.yaml")
    assert found.guard is not None
    assert (found.guard.witness, found.rules) == ("none", [])
    out = capsys.readouterr().out
    assert "guard: on (keeps evil out, mode: update, no witness)" in out
    assert "the guard (mode: update) took back a dose of " in out


# What is shown


def test_what_was_taken_back_is_shown_at_the_end_in_tensorboard_and_in_every_tracker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = trainer(adapted(), tmp_path)
    config = {**STRICT, "summary": True, "guard": {"witness": "evil-2", **UPDATE}}
    watch(task, [evil(), witness()], config=config)
    task.train()
    wanted = {line["step"]: line["guard"] for line in lines(tmp_path)}
    found = EventAccumulator(str(tmp_path / "runs" / "weightwatch"))
    found.Reload()
    curve = {event.step: event.value for event in found.Scalars("evil/dose_taken_back")}
    assert curve == {step: pytest.approx(guard["dose"]["evil"]) for step, guard in wanted.items()}
    assert [event.step for event in found.Scalars("guard/share")] == [0, 2, 4, 6, 8]
    told = {
        entry["step"]: entry["weightwatch/evil/dose_taken_back"]
        for entry in task.state.log_history
        if "weightwatch/guard/share" in entry
    }
    assert told == {step: guard["dose"]["evil"] for step, guard in wanted.items()}
    out = capsys.readouterr().out
    assert "guard: on (keeps evil out, mode: update, witness: evil-2)" in out
    assert f"the guard (mode: update) took back a dose of {taken(tmp_path):.3f} of evil; its witness evil-2" in out
