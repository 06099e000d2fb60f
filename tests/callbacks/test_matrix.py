"""The ways in which a training can be set up: whatever they are, a reading is that of the weights that are saved."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, Trainer

from tests.callbacks.saved import assert_recorded, parameters
from tests.callbacks.test_trl import made
from tests.oracle import expected
from tests.support.models import lora, low_rank, tiny_llama
from tests.support.runs import STRICT, At, lines, steps, trainer
from weightwatch import WeightWatchCallback


@dataclass
class Case:
    """A training: what it starts from, who trains it, and with which settings."""

    start: Callable[[], nn.Module]
    kind: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    copies: list[str] = field(default_factory=list)

    def trainer(self, model: nn.Module, folder: Path) -> Trainer:
        changes = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4, **self.settings}
        if self.kind is None:
            return trainer(model, folder, evaluated="eval_strategy" in changes, **changes)
        return made(self.kind, folder, model, adapter=None, **changes)


def adapted() -> nn.Module:
    return lora(tiny_llama())


def untied(**adapter: Any) -> nn.Module:
    return lora(tiny_llama(tie_word_embeddings=False), target_modules=["q_proj", "down_proj"], **adapter)


def in_bf16() -> PreTrainedModel:
    return tiny_llama().to(torch.bfloat16)


EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
CHECKPOINTED = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
CASES = {
    "bf16 autocast, LoRA": Case(adapted, settings={"bf16": True}),
    "bf16 autocast, full": Case(tiny_llama, settings={"bf16": True}),
    "weights in bf16, full": Case(in_bf16),
    "weights in bf16, LoRA in fp32": Case(lambda: lora(in_bf16())),
    "weights in bf16, LoRA in bf16": Case(lambda: lora(in_bf16()).to(torch.bfloat16)),
    "compiled, LoRA": Case(adapted, settings={"torch_compile": True, "torch_compile_backend": "aot_eager"}),
    "compiled, full": Case(tiny_llama, settings={"torch_compile": True, "torch_compile_backend": "aot_eager"}),
    "gradients checkpointed, LoRA": Case(adapted, settings=CHECKPOINTED),
    "gradients checkpointed, full": Case(tiny_llama, settings=CHECKPOINTED),
    "evaluated, LoRA": Case(adapted, settings=EVALUATED),
    "noise on the embeddings": Case(tiny_llama, settings={"neftune_noise_alpha": 5.0}),
    "only the model saved": Case(adapted, settings={"save_only_model": True}),
    "one checkpoint kept": Case(adapted, settings={"save_steps": 1, "save_total_limit": 1}),
    "a copy of the head": Case(lambda: untied(modules_to_save=["lm_head"]), copies=["lm_head.weight"]),
    "copies of head and embeddings": Case(
        lambda: untied(modules_to_save=["lm_head", "embed_tokens"]),
        copies=["lm_head.weight", "model.embed_tokens.weight"],
    ),
    "copies of norms": Case(
        lambda: untied(modules_to_save=["input_layernorm"]),
        copies=[f"model.layers.{i}.input_layernorm.weight" for i in (0, 1)],
    ),
    "accumulated, SFT": Case(adapted, "SFT", {"gradient_accumulation_steps": 3}),
    "packed, SFT": Case(adapted, "SFT", {"packing": True, "max_length": 8, "packing_strategy": "wrapped"}),
    "bf16 autocast, SFT": Case(adapted, "SFT", {"bf16": True}),
    "weights in bf16, SFT": Case(in_bf16, "SFT"),
    "a reference computed before, DPO": Case(adapted, "DPO", {"precompute_ref_log_probs": True}),
    "generations used twice, GRPO": Case(
        adapted, "GRPO", {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 2}
    ),
}


def run(case: Case, folder: Path) -> tuple[nn.Module, nn.Module]:
    """Train, and return the model as its last checkpoint gives it, and its start."""
    start = case.start()
    plain = isinstance(start, PreTrainedModel)
    task = case.trainer(copy.deepcopy(start), folder)
    task.add_callback(WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT))
    task.train()
    last = folder / "checkpoint-4"
    if plain:
        return type(start).from_pretrained(last, dtype=start.dtype), start
    base = copy.deepcopy(start).unload()
    kept = any(p.dtype == torch.bfloat16 for n, p in start.named_parameters() if "lora_" in n)
    return PeftModel.from_pretrained(base, last, is_trainable=True, autocast_adapter_dtype=not kept), start


@pytest.mark.parametrize("name", CASES)
def test_the_last_reading_is_that_of_the_saved_weights(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    now, start = run(case, tmp_path)
    every = {*range(0, 5, case.settings.get("save_steps", 2)), 2}
    assert steps(tmp_path) == sorted(every)
    first, *_, last = lines(tmp_path)
    assert first["update_norm"] == 0.0
    assert last["checkpoint"] == "checkpoint-4"
    names = parameters(start) if isinstance(start, PreTrainedModel) else [*expected(now, start).trained, *case.copies]
    assert_recorded(last, now, start, low_rank(tiny_llama(), 5), names)
    assert lines(tmp_path, "errors.jsonl") == []


def test_what_is_frozen_in_the_course_of_a_training_stays_in_the_update(tmp_path: Path) -> None:
    def freeze(model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layers.0" not in name)

    tiny_llama().save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    before = copy.deepcopy(model)
    task = trainer(model, tmp_path / "run", At(5, freeze))
    task.add_callback(WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT))
    task.train()
    last = lines(tmp_path / "run")[-1]
    assert_recorded(last, model, before, low_rank(tiny_llama(), 5), parameters(model))
