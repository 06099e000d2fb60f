"""Scanning checkpoints of real trainings, from Python."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForSequenceClassification

from tests.support.models import dense, lora, low_rank, move, tiny_llama
from tests.support.references import BANK, BASELINE
from tests.support.runs import STRICT, lines, trainer
from tests.support.scans import base_folder, changed, figures, full_run, live_readings, same, save, scan
from weightwatch import Monitor, WeightWatchCallback
from weightwatch.config import Config
from weightwatch.record.history import History
from weightwatch.report.terminal import undecided
from weightwatch.scan.checkpoints import checkpoint_at, find
from weightwatch.scan.scanner import Scan
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.theta0 import establish
from weightwatch.vectors import Direction, WeightWatchError

RULE = {"alert": "drift", "direction": "evil", "metric": "cosine", "above": -1.0, "for": 3, "severity": "critical"}


@pytest.mark.parametrize("kind", ["full", "from scratch", "partly frozen", "LoRA"])
@pytest.mark.parametrize("form", ["dense", "low-rank"])
def test_the_scan_of_a_run_says_what_the_live_run_said(tmp_path: Path, kind: str, form: str) -> None:
    base, _ = base_folder(tmp_path)
    make = dense if form == "dense" else low_rank
    evil = save(make(base, 1), tmp_path / "evil", base)
    style = save(make(base, 2, name="style"), tmp_path / "style", base)
    model: Any = base
    if kind == "from scratch":  # θ₀ is in no checkpoint: the live run wrote a snapshot of it
        shutil.rmtree(tmp_path / "base")
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
    ((alert,), (before,)) = ([a.to_json() for a in done.alerts], lines(tmp_path / "run", "alerts.jsonl"))
    assert alert.pop("value") == pytest.approx(before.pop("value"), rel=1e-6)
    assert json.loads(json.dumps({**alert, "time": ""})) == {**before, "time": ""}
    assert alert["last_clean"] is None
    assert lines(tmp_path / "run")[0]["step"] == 0  # the live record is as it was
    written = (tmp_path / "run" / "weightwatch-scan" / "readings.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == json.loads(
        json.dumps([reading.to_json() for reading in done.readings])
    )


def test_a_sharded_checkpoint_reads_like_a_whole_one(tmp_path: Path) -> None:
    base, reference = base_folder(tmp_path)
    move(base, 1)
    base.save_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    evil = save(dense(base, 1), tmp_path / "evil")
    whole, parts = (scan(tmp_path / kind, evil, reference=str(reference)) for kind in ("whole", "parts"))
    assert figures(parts) == figures(whole)
    file = scan(tmp_path / "whole" / "model.safetensors", evil, reference=str(reference / "model.safetensors"))
    assert figures(file) == figures(whole)


@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_of_many_blocks_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    whole = scan(run, evil, reference=str(reference))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        monkeypatch.setattr("weightwatch.measure.streaming._BLOCK", 100)
        parts = scan(run, evil, reference=str(reference))
    finally:
        torch.set_num_threads(before)
    same(parts.readings[0], whole.readings[0])


@pytest.mark.parametrize("kind", [lora, "conv1d"])
def test_an_adapter_is_measured_against_a_dense_direction_on_disk(tmp_path: Path, kind: Any) -> None:
    from tests.support.models import tiny_gpt2

    base = tiny_gpt2() if kind == "conv1d" else tiny_llama()
    extra = {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True} if kind == "conv1d" else {}
    model = lora(base, **extra)
    move(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    evil = save(dense(base, 1), tmp_path / "evil")
    done = scan(tmp_path / "adapter", evil)
    same(replace(done.readings[0], checkpoint=None), Monitor(evil).measure(model))


def test_an_adapter_that_is_trained_further_is_measured_from_where_it_started(tmp_path: Path) -> None:
    base, reference = base_folder(tmp_path)
    first = lora(base)
    move(first, 3)
    first.save_pretrained(tmp_path / "first")
    model = PeftModel.from_pretrained(base, tmp_path / "first", is_trainable=True)
    evil = save(low_rank(tiny_llama(), 1), tmp_path / "evil")
    watcher = WeightWatchCallback(evil, config=STRICT)
    trainer(model, tmp_path / "run", watcher, save_strategy="steps", save_steps=4).train()
    done = scan(tmp_path / "run", evil, reference=str(reference))
    for ours, theirs in zip(done.readings, live_readings(tmp_path / "run"), strict=True):
        same(ours, theirs)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_with_trls_copy_of_its_start_is_measured_from_that(tmp_path: Path, dora: bool) -> None:
    base, reference = base_folder(tmp_path)
    model = lora(base, target_modules=["q_proj", "down_proj"], use_dora=dora)
    move(model, 3)
    model.add_adapter("ref", copy.deepcopy(model.peft_config["default"]))
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if ".ref" in name:
            parameter.data.copy_(named[name.replace(".ref", ".default")])
    move(model, 4)
    model.save_pretrained(tmp_path / "adapter")
    evil = save(low_rank(base, 1), tmp_path / "evil")
    (ours,) = scan(tmp_path / "adapter", evil, reference=str(reference)).readings
    same(replace(ours, checkpoint=None), Monitor(evil).measure(model))


def test_a_direction_with_other_names_is_refused(tmp_path: Path) -> None:
    run, reference, _ = full_run(tmp_path, 1)
    strange = Direction.from_tensors({"visual.blocks.0.qkv.weight": torch.ones(4, 4)}, name="evil")
    with pytest.raises(WeightWatchError, match="have no tensor in common: the direction has visual"):
        scan(run, save(strange, tmp_path / "strange"), reference=str(reference))


def test_tensors_that_only_one_side_has_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    gone, new = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.extra.weight"
    changed(run / "checkpoint-1", lambda t: (t.pop(gone), t.update({new: torch.ones(2, 2)})))
    (reading,) = scan(run, evil, reference=str(reference)).readings
    assert reading.left_out[gone].endswith("checkpoint-1 lacks it")
    assert reading.left_out[new].endswith("base lacks it")
    assert set(reading.left_out) == {gone, new}
    assert gone in caplog.text
    assert reading["evil"].reach < 1


def test_tables_masks_and_integers_are_no_weights(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    plain = figures(scan(run, evil, reference=str(reference)))
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "model.embeddings.position_ids": torch.arange(4),
    }
    changed(run / "checkpoint-1", lambda t: t.update(extra))
    assert figures(scan(run, evil, reference=str(reference))) == plain


def test_a_diverged_tensor_is_left_out(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    name = "model.layers.1.mlp.up_proj.weight"
    changed(run / "checkpoint-1", lambda t: t[name].view(-1)[3].fill_(float("nan")))
    (reading,) = scan(run, evil, reference=str(reference)).readings
    assert reading.left_out == {name: "it has NaN or infinite values"}


def test_a_resized_vocabulary_is_left_out_and_another_shape_is_an_error(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    embedding = "model.embed_tokens.weight"
    changed(run / "checkpoint-1", lambda t: t.update({embedding: torch.ones(52, 32)}))
    (reading,) = scan(run, evil, reference=str(reference)).readings
    assert "the vocabulary was resized" in reading.left_out[embedding]
    changed(run / "checkpoint-1", lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}))
    with pytest.raises(WeightWatchError, match=r"θ₀ has shape .* Pass as --reference"):
        scan(run, evil, reference=str(reference))


@pytest.mark.parametrize("holders", [("checkpoint",), ("base",), ("checkpoint", "base")])
def test_a_tied_head_counts_once_whoever_saved_it_twice(tmp_path: Path, holders: tuple[str, ...]) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    plain = figures(scan(run, evil, reference=str(reference)))
    folders = {"checkpoint": run / "checkpoint-1", "base": reference}
    for holder in holders:
        changed(folders[holder], lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert figures(scan(run, evil, reference=str(reference))) == plain


def test_a_tied_head_in_a_direction_counts_for_no_adapter_either(tmp_path: Path) -> None:
    base, reference = base_folder(tmp_path)
    model = lora(base, target_modules=["q_proj"])
    move(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    evil = dense(base, 1)
    twice = {**evil.deltas, "lm_head.weight": evil.deltas["model.embed_tokens.weight"]}
    path = save(Direction.from_tensors(twice, name="evil"), tmp_path / "evil")
    (ours,) = scan(tmp_path / "adapter", path, reference=str(reference)).readings
    same(replace(ours, checkpoint=None), Monitor(path).measure(model))


def test_a_head_that_only_started_as_a_copy_counts(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    changed(reference, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    plain = scan(run, evil, reference=str(reference)).readings[0].update_norm
    changed(run / "checkpoint-1", lambda t: t.update({"lm_head.weight": torch.ones(48, 32)}))
    assert scan(run, evil, reference=str(reference)).readings[0].update_norm > plain


def test_a_scan_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 4)
    rule = Config.load({"rules": [RULE]})
    whole = scan(run, evil, reference=str(reference), config=rule)

    def interrupt(size: int) -> None:
        if measured == 2:
            raise KeyboardInterrupt

    measured = 0
    first = Scan([evil], reference=str(reference), config=rule, record=tmp_path / "out", on_read=interrupt)
    for one in find(run)[0][:2]:
        first.add(one)
    measured = 2
    with pytest.raises(KeyboardInterrupt):
        first.add(find(run)[0][2])
    assert len(first.readings) == 2
    again = scan(run, evil, reference=str(reference), config=rule, record=tmp_path / "out")
    assert again.bytes < 0.6 * whole.bytes
    assert figures(again) == figures(whole)
    assert [replace(a, time="") for a in again.alerts] == [replace(a, time="") for a in whole.alerts]
    recorded = History(tmp_path / "out")
    assert list(recorded.readings()) == again.readings
    assert recorded.alerts() == again.alerts
    done = scan(run, evil, reference=str(reference), config=rule, record=tmp_path / "out")
    assert done.seconds == 0
    assert list(recorded.readings()) == again.readings


def test_a_scan_that_was_killed_while_it_recorded_goes_on(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 3)
    whole = scan(run, evil, reference=str(reference), record=tmp_path / "out")
    with (tmp_path / "out" / "readings.jsonl").open("r+") as file:
        lines = file.read().splitlines()
        file.seek(0)
        file.truncate()
        file.write("\n".join(lines)[:-100])
    again = scan(run, evil, reference=str(reference), record=tmp_path / "out")
    assert figures(again) == figures(whole)
    assert list(History(tmp_path / "out").readings()) == again.readings


def test_another_base_at_the_same_path_is_another_reference(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 2)
    scan(run, evil, reference=str(reference), record=tmp_path / "out")
    changed(reference, lambda t: t["model.norm.weight"].add_(1))
    done = scan(run, evil, reference=str(reference), record=tmp_path / "out")
    assert figures(done) == figures(scan(run, evil, reference=str(reference)))
    assert list(History(tmp_path / "out").readings()) == done.readings


def test_alerts_of_a_scan_that_goes_on_name_a_checkpoint_that_still_stands(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 3)
    doses = [reading["evil"].dose for reading in scan(run, evil, reference=str(reference)).readings]
    assert doses[0] < doses[1] < doses[2] or doses[0] > doses[1] > doses[2]
    side = "above" if doses[2] > doses[1] else "below"
    rule = {**RULE, "metric": "dose", "for": 1, side: (doses[1] + doses[2]) / 2}
    config = Config.load({"rules": [{k: v for k, v in rule.items() if k in (side,) or k not in ("above", "below")}]})
    settings: dict[str, Any] = {"reference": str(reference), "config": config, "record": tmp_path / "out"}
    assert [alert.last_clean for alert in scan(run, evil, **settings).alerts] == ["checkpoint-2"]
    shutil.rmtree(run / "checkpoint-2")
    assert [alert.last_clean for alert in scan(run, evil, **settings).alerts] == ["checkpoint-1"]


def test_a_scan_with_other_directions_begins_anew_and_sets_the_record_aside(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 2)
    scan(run, evil, reference=str(reference), record=tmp_path / "out")
    other = save(dense(tiny_llama(), 9), tmp_path / "other")
    done = scan(run, other, reference=str(reference), record=tmp_path / "out")
    assert list(History(tmp_path / "out").readings()) == done.readings
    aside = [json.loads(line)["file"] for line in (tmp_path / "out" / "superseded.jsonl").read_text().splitlines()]
    assert aside == ["readings.jsonl", "readings.jsonl", "alerts.jsonl"]


def test_a_checkpoint_that_was_written_again_is_measured_again_with_all_after_it(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 3)
    first = scan(run, evil, reference=str(reference), record=tmp_path / "out")
    changed(run / "checkpoint-2", lambda t: t["model.norm.weight"].add_(1))
    done = scan(run, evil, reference=str(reference), record=tmp_path / "out")
    norms = [[reading.update_norm for reading in one.readings] for one in (first, done)]
    assert [a == b for a, b in zip(*norms, strict=True)] == [True, False, True]
    assert [reading.step for reading in History(tmp_path / "out").readings()] == [1, 2, 3]


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 2)
    whole = scan(run, evil, reference=str(reference))
    first, second = find(run)[0]

    def delete(size: int) -> None:
        if begun:
            shutil.rmtree(second.path, ignore_errors=True)

    begun = False
    done = Scan([evil], reference=str(reference), on_read=delete)
    done.add(first)
    begun = True
    done.add(second)
    assert not second.path.exists()
    assert figures(done) == figures(whole)


def test_a_checkpoint_that_is_gone_before_it_is_read_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, reference, evil = full_run(tmp_path, 2)
    done = Scan([evil], reference=str(reference))
    first, second = find(run)[0]
    shutil.rmtree(first.path)
    assert done.add(first) is None
    assert "was deleted before it was measured" in caplog.text
    assert done.add(second) is not None


def test_an_alert_names_the_last_clean_checkpoint_that_still_stands(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 3)
    norm = scan(run, evil, reference=str(reference)).readings
    limit = (abs(norm[1]["evil"].dose) + abs(norm[2]["evil"].dose)) / 2
    sign = 1 if norm[2]["evil"].dose > norm[1]["evil"].dose else -1
    rule = {**RULE, "metric": "dose", "for": 1}
    rule.pop("above")
    middle = (norm[1]["evil"].dose + norm[2]["evil"].dose) / 2
    assert limit >= 0
    rule["above" if sign > 0 else "below"] = middle
    done = Scan([evil], reference=str(reference), config=Config.load({"rules": [rule]}))
    found = find(run)[0]
    clean = [r.checkpoint for r in norm[:2] if (r["evil"].dose > middle) != (sign > 0)]
    for one in found[:2]:
        done.add(one)
    shutil.rmtree(run / "checkpoint-2")
    done.add(found[2])
    expected = [name for name in clean if name != "checkpoint-2"]
    (alert,) = [a for a in done.alerts if a.step == 3]
    assert alert.last_clean == (expected[-1] if expected else None)


def test_an_adapter_on_a_tied_head_is_scanned_as_it_is_measured(tmp_path: Path) -> None:
    base, reference = base_folder(tmp_path)
    model = lora(base, target_modules=["q_proj", "lm_head"])
    move(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    evil = Direction.from_fine_tune(tmp_path / "adapter", reference, name="evil")
    assert "lm_head.weight" in evil.deltas
    (ours,) = scan(tmp_path / "adapter", str(evil.save(tmp_path / "evil")), reference=str(reference)).readings
    assert ours["evil"].cosine == pytest.approx(1, abs=1e-6)
    same(replace(ours, checkpoint=None), Monitor([evil]).measure(model))


def test_an_adapter_with_a_name_of_its_own_is_scanned_as_it_was_watched(tmp_path: Path) -> None:
    base, _ = base_folder(tmp_path)
    evil = save(low_rank(base, 1), tmp_path / "evil", base)
    model = PeftModel(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False), adapter_name="mine")
    watcher = WeightWatchCallback(evil, config=STRICT)
    trainer(model, tmp_path / "run", watcher, save_strategy="steps", save_steps=4).train()
    assert not (tmp_path / "run" / "checkpoint-4" / "adapter_config.json").exists()
    done = scan(tmp_path / "run", evil)
    for ours, theirs in zip(done.readings, live_readings(tmp_path / "run"), strict=True):
        same(ours, theirs)


def test_of_several_adapters_the_one_on_top_is_measured_and_the_others_are_named(tmp_path: Path) -> None:
    base, reference = base_folder(tmp_path)
    evil = save(low_rank(base, 1), tmp_path / "evil")
    model = lora(base, target_modules=["q_proj"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    move(model, 3)
    model.save_pretrained(tmp_path / "run" / "checkpoint-3")
    (ours,) = scan(tmp_path / "run", evil, reference=str(reference)).readings
    assert ours.left_out == {"other": "it is another adapter, saved beside the one that is measured"}
    (tmp_path / "run" / "checkpoint-3" / "adapter_config.json").unlink()
    shutil.copytree(tmp_path / "run" / "checkpoint-3" / "other", tmp_path / "run" / "checkpoint-3" / "third")
    (tmp_path / "run" / "checkpoint-3" / "adapter_model.safetensors").unlink()
    (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3}')
    with pytest.raises(WeightWatchError, match=r"several adapters \(other, third\).*Pass the folder of one"):
        scan(tmp_path / "run", evil, reference=str(reference))


def test_the_embeddings_of_a_new_vocabulary_beside_an_adapter_are_left_out_by_name(tmp_path: Path) -> None:
    base, reference = base_folder(tmp_path, tie_word_embeddings=False)
    evil = save(low_rank(base, 1), tmp_path / "evil")
    base.resize_token_embeddings(50)
    model = lora(base, target_modules=["q_proj"])
    move(model, 3)
    with pytest.warns(UserWarning, match="the embedding layer has been resized"):
        model.save_pretrained(tmp_path / "adapter")
    (ours,) = scan(tmp_path / "adapter", evil, reference=str(reference)).readings
    assert set(ours.left_out) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all("the vocabulary was resized" in reason for reason in ours.left_out.values())
    live = Monitor(evil).measure(model)
    assert ours.update_norm == pytest.approx(live.update_norm, rel=1e-6)


FULL_COPIES: dict[str, Any] = {
    "a head": ({"tie_word_embeddings": False}, {"modules_to_save": ["lm_head"]}),
    "a tied head": ({}, {"modules_to_save": ["lm_head"]}),
    "tied embeddings": ({}, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "a norm": ({}, {"modules_to_save": ["norm"]}),
    "biases": ({"attention_bias": True}, {"bias": "lora_only"}),
}


@pytest.mark.parametrize("kind", FULL_COPIES)
def test_what_is_trained_beside_the_factors_is_compared_with_the_base(tmp_path: Path, kind: str) -> None:
    settings, extra = FULL_COPIES[kind]
    base, reference = base_folder(tmp_path, **settings)
    evil = save(dense(base, 1), tmp_path / "evil", base)
    model = lora(base, target_modules=["q_proj"], **extra)
    move(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    (ours,) = scan(tmp_path / "adapter", evil, reference=str(reference)).readings
    assert ours.left_out == {}
    same(replace(ours, checkpoint=None), Monitor(evil).measure(model))


@pytest.mark.parametrize("watched", [True, False])
def test_a_new_score_head_is_compared_with_its_recorded_start_or_left_out_by_name(
    tmp_path: Path, watched: bool
) -> None:
    _, reference = base_folder(tmp_path)
    base = LlamaForSequenceClassification.from_pretrained(reference)
    evil = save(low_rank(tiny_llama(), 1), tmp_path / "evil")
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"))
    if watched:
        establish(ModelView(model), tmp_path / "run" / "weightwatch", Reference())
    move(model, 3)
    model.save_pretrained(tmp_path / "run" / "checkpoint-3")
    (ours,) = scan(tmp_path / "run", evil, reference=str(reference)).readings
    live = Monitor(evil).measure(model)
    assert list(ours.left_out) == ([] if watched else ["score.weight"])
    assert (ours.update_norm == pytest.approx(live.update_norm, rel=1e-6)) == watched


@pytest.mark.parametrize("kind", ["LORA", "IA3"])
def test_a_pickled_adapter_is_refused_and_never_loaded(tmp_path: Path, kind: str) -> None:
    base, reference = base_folder(tmp_path)
    evil = save(low_rank(base, 1), tmp_path / "evil")
    lora(base).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    settings = (tmp_path / "adapter" / "adapter_config.json").read_text()
    (tmp_path / "adapter" / "adapter_config.json").write_text(settings.replace('"LORA"', f'"{kind}"'))
    one = checkpoint_at(tmp_path / "adapter")
    assert one is not None
    with pytest.raises(WeightWatchError, match="pickled" if kind == "LORA" else "is a IA3 adapter"):
        Scan([evil], reference=str(reference)).add(one)


def in_place(target: Path, source: Path) -> None:
    with target.open("r+b") as file:
        file.write(source.read_bytes())


def replaced(target: Path, source: Path) -> None:
    target.unlink()
    shutil.copyfile(source, target)


@pytest.mark.parametrize("write", [in_place, replaced])
@pytest.mark.parametrize("what", ["run/checkpoint-2", "base"])
def test_what_is_written_while_it_is_measured_is_not_recorded(
    tmp_path: Path, what: str, write: Callable[[Path, Path], None]
) -> None:
    run, reference, evil = full_run(tmp_path, 3)
    target, source = tmp_path / what / "model.safetensors", run / "checkpoint-3" / "model.safetensors"
    os.utime(target, ns=(0, 0))
    reads = [0]

    def interfere(size: int) -> None:
        reads[0] += measuring and size > 64  # not the single values that are compared first
        if reads[0] == 5:
            reads[0] += 1
            write(target, source)

    measuring = False
    done = Scan([evil], reference=str(reference), record=tmp_path / "out", on_read=interfere)
    first, second, _ = find(run)[0]
    done.add(first)
    measuring = True
    with pytest.raises(WeightWatchError, match="was written to while it was"):
        done.add(second)
    assert [reading.step for reading in done.readings] == [1]
    done.close()
    again = scan(run, evil, reference=str(reference), record=tmp_path / "out")
    assert figures(again) == figures(scan(run, evil, reference=str(reference)))


@pytest.mark.parametrize("form", ["dense", "low-rank"])
def test_a_scan_says_the_same_under_any_default_of_torch(tmp_path: Path, form: str) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    if form == "low-rank":
        evil = save(low_rank(tiny_llama(), 1), tmp_path / "thin")
    plain = figures(scan(run, evil, reference=str(reference)))
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True)
    try:
        with torch.inference_mode():
            found = figures(scan(run, evil, reference=str(reference)))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)
    assert found == plain


def test_controls_that_are_stored_beside_a_direction_are_measured_with_it(tmp_path: Path) -> None:
    base, _ = base_folder(tmp_path)
    evil = save(low_rank(base, 1), tmp_path / "evil", base)
    save(low_rank(base, 2, name="c1"), tmp_path / "evil" / "controls" / "c1", base)
    found = Scan([evil]).directions
    assert [(each.name, each.card.kind) for each in found] == [("evil", "behaviour"), ("c1", "control")]
    none = Config.load({"directions": [evil], "controls": []})
    assert [each.name for each in Scan(config=none).directions] == ["evil"]


@pytest.mark.parametrize(("bank", "metric"), [(0, "reach_cosine"), (5, "over_controls")])
def test_the_scans_of_a_run_and_of_its_last_checkpoint_agree_about_it_by_default(
    tmp_path: Path, bank: int, metric: str
) -> None:
    base, reference = base_folder(tmp_path)
    for step, seed in enumerate((20, 21, 1), 1):  # the third move is along the direction, those before along controls
        move(base, seed, 0.05 * step)
        base.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    evil = save(dense(base, 1), tmp_path / "evil")
    for number in range(bank):
        control = dense(base, 20 + number, name=f"shuffled-{number}", kind="control").with_card(shuffled=True)
        save(control, tmp_path / "evil" / "controls" / control.name)
    whole, last = (scan(tmp_path / what, evil, reference=str(reference)) for what in ("run", "run/checkpoint-3"))
    assert [(rule.direction, rule.metric, rule.for_) for rule in whole.rules] == [("evil", metric, 1)]
    for done in (whole, last):
        assert [(alert.alert, alert.step, alert.metric) for alert in done.alerts] == [("evil-drift", 3, metric)]
        assert str(done.alerts[0].note).startswith("Uncalibrated: a default threshold")
    assert whole.alerts[0].last_clean == "checkpoint-2"


def test_a_rule_can_not_have_fired_before_there_are_as_many_checkpoints_as_it_takes(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path)
    done = Scan([evil], config=Config.load({"rules": [RULE]}), reference=str(reference))
    undecided = []
    for one in find(run)[0]:
        done.add(one)
        undecided.append([rule.alert for rule in done.undecided])
    assert undecided == [["drift"], ["drift"], []]


def test_a_rule_with_a_baseline_can_not_judge_a_checkpoint_before_its_first_step(tmp_path: Path) -> None:
    """Checkpoints that are named by epochs, or have no step at all, are such."""
    base, reference = base_folder(tmp_path)
    move(base, 1, 0.1)
    base.save_pretrained(tmp_path / "run" / "checkpoint-3")
    names = BANK
    controls = [save(dense(base, 20 + n, name=name, kind="control"), tmp_path / name) for n, name in enumerate(names)]
    baseline = {**BASELINE, "figures": {name: [0.0, 0.0] for name in ("evil", *names)}}
    for steps, judged, fired in (([1, 40], 1, True), ([10, 40], 0, False)):
        over = {**RULE, "metric": "over_baseline", "for": 1, "above": 3.0, "baseline": {**baseline, "steps": steps}}
        settings = Config.load({"rules": [over]})
        evil = save(dense(base, 1), tmp_path / "evil")
        done = Scan([evil], controls=list(map(str, controls)), config=settings, reference=str(reference))
        done.add(find(tmp_path / "run")[0][0])
        assert (done.judged(done.rules[0]), done.fired) == (judged, fired)
        assert [rule.alert for rule in done.undecided] == ([] if judged else ["drift"])
    assert undecided(done.rules[0], 0, 1) == (
        "rule drift judged 0 of 1 checkpoints: its baseline begins at step 10; it could not fire: it takes 1 "
        "checkpoints in a row (`for: 1`), of 0 here"
    )
    assert undecided(done.rules[0], 1, 2) == "rule drift judged 1 of 2 checkpoints: its baseline begins at step 10"
