"""Adapters whose change is more than B A, loaded with their base: they read as a live model."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tests.support.models import dense, lora, low_rank, move, tiny_llama
from tests.support.runs import STRICT, trainer
from tests.support.scans import base_folder, live_readings, same, save, scan
from weightwatch import Monitor, WeightWatchCallback
from weightwatch.scan.checkpoints import checkpoint_at
from weightwatch.scan.loaded_adapter import measure_loaded
from weightwatch.update.reference import Reference
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa"}, {"modules_to_save": ["lm_head"]}])
@pytest.mark.parametrize("watched", [True, False])
def test_adapters_that_are_more_than_their_factors_are_scanned_as_they_were_watched(
    tmp_path: Path, settings: dict[str, Any], watched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    base, reference = base_folder(tmp_path, tie_word_embeddings=False)
    evil = save(low_rank(base, 1), tmp_path / "evil")
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", **settings)
    model = get_peft_model(base, config)
    watcher = WeightWatchCallback(evil, config=STRICT)
    trainer(model, tmp_path / "run", watcher, save_strategy="steps", save_steps=4).train()
    live = live_readings(tmp_path / "run")
    if not watched:
        shutil.rmtree(tmp_path / "run" / "weightwatch")
    done = scan(tmp_path / "run", evil, reference=str(reference))
    assert ("takes the memory of the whole model" in caplog.text) == ("init_lora_weights" in settings)
    for ours, theirs in zip(done.readings, live, strict=True):
        assert ours.update_norm == pytest.approx(theirs.update_norm, rel=1e-4)
        assert ours["evil"].cosine == pytest.approx(theirs["evil"].cosine, rel=1e-4, abs=1e-6)


def bf16_llama() -> LlamaForCausalLM:
    return tiny_llama().bfloat16()


def wide_llama() -> LlamaForCausalLM:
    return tiny_llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)


HALF: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


IA3: dict[str, Any] = {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}


MORE_THAN_FACTORS: dict[str, tuple[Any, peft.PeftConfig]] = {
    "DoRA": (tiny_llama, LoraConfig(r=4, use_dora=True, **HALF)),
    "DoRA on a bf16 base": (bf16_llama, LoraConfig(r=4, use_dora=True, **HALF)),
    "IA3": (tiny_llama, peft.IA3Config(**IA3, task_type="CAUSAL_LM")),
    "LoKr": (tiny_llama, peft.LoKrConfig(r=4, **HALF)),
    "OFT": (tiny_llama, peft.OFTConfig(oft_block_size=4, **HALF)),
    "LN tuning": (tiny_llama, peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM")),
    "trainable tokens": (tiny_llama, LoraConfig(r=4, trainable_token_indices=[1, 2], **HALF)),
    "LoRA and all biases": (wide_llama, LoraConfig(r=4, bias="all", **HALF)),
    "OLoRA": (tiny_llama, LoraConfig(r=4, init_lora_weights="olora", **HALF)),
}


@pytest.mark.parametrize("kind", MORE_THAN_FACTORS)
def test_every_kind_of_adapter_is_measured_as_by_a_live_monitor(tmp_path: Path, kind: str) -> None:
    make, config = MORE_THAN_FACTORS[kind]
    make().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    evil = save(dense(base, 1), tmp_path / "evil", base)
    torch.manual_seed(5)
    model = get_peft_model(base, copy.deepcopy(config))
    monitor = Monitor(evil)
    monitor.start(model)
    move(model, 3)
    model.save_pretrained(tmp_path / "run" / "checkpoint-3")
    (ours,) = scan(tmp_path / "run", evil, reference=str(tmp_path / "base")).readings
    assert ours.update_norm > 0
    same(replace(ours, checkpoint=None), monitor.measure(model, step=3))


@pytest.mark.parametrize("kind", ["DoRA", "IA3"])
def test_a_watched_run_of_dora_or_ia3_is_scanned_as_it_was_watched(tmp_path: Path, kind: str) -> None:
    base, reference = base_folder(tmp_path)
    evil = save(dense(base, 1), tmp_path / "evil", base)
    model = get_peft_model(base, copy.deepcopy(MORE_THAN_FACTORS[kind][1]))
    watcher = WeightWatchCallback(evil, config=STRICT)
    trainer(model, tmp_path / "run", watcher, save_strategy="steps", save_steps=4).train()
    done = scan(tmp_path / "run", evil)  # the adapter's settings name the base
    assert [reading.step for reading in done.readings] == [4, 8]
    assert str(reference) in done.to_json()["reference"]
    for ours, theirs in zip(done.readings, live_readings(tmp_path / "run"), strict=True):
        same(ours, theirs)


def test_an_adapter_with_a_random_start_that_nobody_noted_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, reference = base_folder(tmp_path)
    evil = save(low_rank(base, 1), tmp_path / "evil")
    lora(base, init_lora_weights=False).save_pretrained(tmp_path / "lora")
    get_peft_model(base, peft.FourierFTConfig(n_frequency=50, **HALF)).save_pretrained(tmp_path / "fourier")
    for kind in ("lora", "fourier"):
        scan(tmp_path / kind, evil, reference=str(reference))
        assert f"{kind}: its adapters started at random" in caplog.text


def test_an_adapter_of_another_base_is_refused_in_words(tmp_path: Path) -> None:
    _, reference = base_folder(tmp_path)
    evil = save(low_rank(tiny_llama(), 1), tmp_path / "evil")
    for name, settings in (("wider", {"hidden_size": 64}), ("deeper", {"num_hidden_layers": 3})):
        lora(tiny_llama(**settings), use_dora=True).save_pretrained(tmp_path / name)
        with pytest.raises(WeightWatchError, match="Pass as --reference the base that it was trained on"):
            scan(tmp_path / name, evil, reference=str(reference))


@pytest.mark.parametrize(("init", "random"), [(True, False), (False, True)])
def test_a_start_that_is_not_recorded_is_that_of_a_new_adapter(tmp_path: Path, init: bool, random: bool) -> None:
    base, reference = base_folder(tmp_path)
    model = lora(base, init_lora_weights=init)
    move(model, 3)
    model.save_pretrained(tmp_path / "adapter")
    adapter, evil = checkpoint_at(tmp_path / "adapter"), low_rank(base, 1)
    assert adapter is not None
    reading, at_random = measure_loaded(adapter, Checkpoint(reference), [evil], Reference())
    assert at_random == random
    same(reading, Monitor(evil).measure(model))  # from the base, as no start is recorded


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {
                "peft_type": "PROMPT_TUNING",
                "num_virtual_tokens": 4,
                "prompt_tuning_init": "TEXT",
                "prompt_tuning_init_text": "be kind",
                "tokenizer_name_or_path": "adapter",
            },
            "changes the model's inputs instead of its weights",
        ),
        ({"peft_type": "LORA", "megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "Merge the adapter"),
    ],
)
def test_an_adapter_whose_settings_would_run_code_is_refused_before_it_is_loaded(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    model, reference = base_folder(tmp_path)
    lora(model, modules_to_save=["lm_head"]).save_pretrained(tmp_path / "adapter")
    known = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]} if settings["peft_type"] == "LORA" else {}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**known, **settings}))
    with pytest.raises(WeightWatchError, match=reason):
        measure_loaded(checkpoint_at(tmp_path / "adapter"), Checkpoint(reference), [low_rank(model, 1)], Reference({}))
