"""Going on from any checkpoint: the record must be that of a run that nothing has interrupted."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from tests.callbacks.saved import assert_recorded, parameters
from tests.callbacks.test_trl import fitting, made, rewarding
from tests.support.models import lora, low_rank, move, tiny_llama
from tests.support.runs import STRICT, At, lines, sequences, settings, steps, timeless, trainer
from tests.test_session import toward
from weightwatch import WeightWatchCallback
from weightwatch.record.history import History

STEPS = 8
RULES = [
    {"alert": "moved", "direction": "evil", "metric": "dose", "scope": "any_layer", "above": -1e9, "for": 3},
    {"alert": "late", "direction": "evil", "metric": "dose", "scope": "any_layer", "above": -1e9, "for": 5},
    {"alert": "flips", "direction": "evil", "metric": "cosine", "scope": {"modules": ["q_proj"]}, "above": 0.0},
    {"alert": "far", "direction": "evil", "metric": "dose", "above": 0.1, "for": 2},
]
CONFIG = {**STRICT, "every": 3, "rules": RULES, "tensorboard": False}


def full(folder: Path) -> nn.Module:
    tiny_llama().save_pretrained(folder / "base")
    return LlamaForCausalLM.from_pretrained(folder / "base")


def changed(folder: Path) -> nn.Module:
    model = full(folder)
    move(model, seed=4, size=0.1)
    return model


def continued(folder: Path) -> nn.Module:
    model = lora(tiny_llama())
    move(model, seed=9, size=0.2)
    return model


def with_copies(folder: Path) -> nn.Module:
    targets = ["q_proj", "down_proj"]
    return lora(tiny_llama(tie_word_embeddings=False), target_modules=targets, modules_to_save=["lm_head"])


def saving(**changes: Any) -> dict[str, Any]:
    return {"save_strategy": "steps", "save_steps": 1, "max_steps": STEPS, "learning_rate": 3e-3, **changes}


Make = Callable[[Path, Path], Trainer]
"""Makes the trainer of a run anew, as a script that is started again does, from a folder for the base and its own."""


def plain(start: Callable[[Path], nn.Module], **changes: Any) -> Make:
    return lambda base, folder: trainer(start(base), folder, **saving(**changes))


def of_trl(kind: str, start: Callable[[Path], nn.Module] | None = None, **changes: Any) -> Make:
    given = {"adapter": None} if start else {}
    return lambda base, folder: made(kind, folder, start(base) if start else tiny_llama(), **saving(**changes), **given)


def there_and_back(base: Path, folder: Path) -> Trainer:
    there, back = At(3, lambda model: toward(model, 1.0)), At(6, lambda model: toward(model, 0.0))
    return trainer(lora(tiny_llama()), folder, there, back, **saving())


EVERY, SOME, ONE = tuple(range(1, STEPS)), (2, 5), (3,)
# Adam and a learning rate that falls make a step depend on all before it; four epochs pass in the accumulating runs.
RUNS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "LoRA": (plain(lambda folder: lora(tiny_llama())), SOME),
    "LoRA, there and back": (there_and_back, EVERY),
    "full, from a base checkpoint": (plain(full), EVERY),
    "full, of a base that was changed": (plain(changed), EVERY),
    "PiSSA": (plain(lambda folder: lora(tiny_llama(), init_lora_weights="pissa")), EVERY),
    "an adapter that is trained on": (plain(continued), EVERY),
    "LoRA with accumulated gradients": (
        plain(lambda folder: lora(tiny_llama()), gradient_accumulation_steps=3, per_device_train_batch_size=8),
        EVERY,
    ),
    "full with accumulated gradients": (
        plain(full, gradient_accumulation_steps=3, per_device_train_batch_size=8),
        SOME,
    ),
    "a copy of the head": (plain(with_copies), SOME),
    "LoRA in bf16": (plain(lambda folder: lora(tiny_llama()), bf16=True), SOME),
    "SFT": (of_trl("SFT"), SOME),
    "SFT, full": (of_trl("SFT", full), ONE),
    "DPO": (of_trl("DPO"), ONE),
    "DPO, an adapter that is trained on": (of_trl("DPO", continued), SOME),
    "KTO": (of_trl("KTO"), ONE),
    "GRPO": (of_trl("GRPO"), SOME),
    "GRPO, full": (of_trl("GRPO", full), ONE),
    "GRPO, an adapter that is trained on": (of_trl("GRPO", continued, beta=0.1), ONE),
    "RLOO": (of_trl("RLOO"), ONE),
    "Distillation": (of_trl("Distillation"), ONE),
}


def run(kind: str, base: Path, folder: Path, resume: int | None = None) -> Trainer:
    task = RUNS[kind][0](base, folder)
    task.add_callback(WeightWatchCallback([low_rank(tiny_llama(), 5)], config=CONFIG))
    task.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume}") if resume else None)
    return task


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Give the folders of a kind of run and of its base; each kind is trained once."""
    done: dict[str, tuple[Path, Path]] = {}

    def folders(kind: str) -> tuple[Path, Path]:
        if kind not in done:
            folder = tmp_path_factory.mktemp("whole")
            run(kind, folder, folder / "run")
            assert steps(folder / "run") == list(range(STEPS + 1))
            done[kind] = folder, folder / "run"
        return done[kind]

    return folders


def assert_same_record(folder: Path, other: Path) -> None:
    assert timeless(folder) == timeless(other)
    assert timeless(folder, "alerts.jsonl") == timeless(other, "alerts.jsonl")
    assert lines(folder, "errors.jsonl") == []


@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind, (_, at) in RUNS.items() for step in at])
def test_a_run_that_goes_on_from_any_checkpoint_has_the_record_of_one_that_was_never_stopped(
    kind: str, step: int, whole: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, done = whole(kind)
    shutil.copytree(done, tmp_path / "run")  # with what was recorded after the checkpoint
    run(kind, base, tmp_path / "run", step)
    assert_same_record(tmp_path / "run", done)


def test_the_alerts_that_are_compared_fire_name_a_checkpoint_and_are_resolved(
    whole: Callable[[str], tuple[Path, Path]],
) -> None:
    raised = [
        (alert["alert"], alert["state"], alert["step"], alert["last_clean"])
        for alert in lines(whole("LoRA, there and back")[1], "alerts.jsonl")
    ]
    assert ("far", "firing", 4, "checkpoint-2") in raised
    assert ("far", "resolved", 6, "checkpoint-2") in raised
    assert [step for name, state, step, _ in raised if (name, state) == ("late", "firing")] == [5]


def test_a_checkpoint_that_a_crash_kept_from_its_reading_is_given_to_it(
    whole: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    base, done = whole("LoRA")
    shutil.copytree(done, tmp_path / "run")
    history = History(tmp_path / "run" / "weightwatch")
    history.rewind(4)
    history.amend(replace(list(history.readings())[-1], checkpoint=None))
    run("LoRA", base, tmp_path / "run", 4)
    assert_same_record(tmp_path / "run", done)


def test_a_run_that_is_made_longer_keeps_its_record(tmp_path: Path) -> None:
    for length in (4, 8):
        task = trainer(
            lora(tiny_llama()), tmp_path, **saving(max_steps=length, save_steps=4, lr_scheduler_type="constant")
        )
        task.add_callback(WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT))
        task.train(resume_from_checkpoint=length > 4)
    assert steps(tmp_path) == [0, 2, 4, 6, 8]


def test_an_adapter_with_a_name_of_its_own_goes_on(tmp_path: Path) -> None:
    records = []
    for resume in (None, str(tmp_path / "checkpoint-4")):
        model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules="all-linear"), adapter_name="mine")
        task = trainer(model, tmp_path, **saving(save_steps=4))
        task.add_callback(WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT))
        task.train(resume_from_checkpoint=resume)
        records.append(timeless(tmp_path))
    assert records[0] == records[1]


class SmallMemory(Trainer):
    """Runs out of memory once, in its fourth batch."""

    batches = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.batches += 1
        if self.batches == 4:
            raise RuntimeError("CUDA out of memory.")
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize("start", ["LoRA", "full", "an adapter that is trained on"])
def test_a_training_that_begins_again_with_smaller_batches_is_measured_from_its_first_beginning(
    start: str, tmp_path: Path
) -> None:
    makers = {"LoRA": lambda folder: lora(tiny_llama()), "full": full, "an adapter that is trained on": continued}
    model = makers[start](tmp_path)
    before = copy.deepcopy(model)
    args = TrainingArguments(**settings(tmp_path / "run", auto_find_batch_size=True))
    task = SmallMemory(model, args, train_dataset=sequences())
    task.add_callback(WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT))
    task.train()
    first, *_, last = lines(tmp_path / "run")
    assert steps(tmp_path / "run") == [0, 2, 4, 6, 8]
    assert first["update_norm"] > 0  # three steps of the first attempt
    names = parameters(model) if start == "full" else None
    assert_recorded(last, model, before, low_rank(tiny_llama(), 5), names)
    task.train()
    assert lines(tmp_path / "run")[0]["update_norm"] == 0.0  # and what was ended is ended


def test_a_new_head_is_measured_from_its_first_start_though_it_is_initialised_otherwise_when_the_run_goes_on(
    tmp_path: Path,
) -> None:
    records = []
    for seed, resume in ((0, None), (1, str(tmp_path / "checkpoint-2"))):
        model = rewarding()
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.score.weight)  # the base has no head: each start of the script makes a new one
        task = made("Reward", tmp_path, model, adapter=fitting("Reward"), **saving(max_steps=4, save_steps=2))
        task.add_callback(WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT))
        task.train(resume_from_checkpoint=resume)
        records.append(timeless(tmp_path))
    assert records[0] == records[1]
