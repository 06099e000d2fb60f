"""The callback in the real Trainer, in two processes: one history, equal to that of one process with the same data."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from tests.distributed.engines import ADAPTER, SIZES, compile_nothing
from tests.distributed.processes import Processes
from tests.support.models import dense, low_rank, tiny_llama
from tests.support.receivers import hook
from tests.support.runs import STRICT, lines, sequences, settings, steps
from weightwatch.callbacks import WeightWatchCallback

pytestmark = pytest.mark.distributed

ZERO = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def train(folder: str, base: str, adapted: bool, stage: int | None = None, processes: int = 2) -> tuple[str, bool]:
    """Train on 8 sequences a step; return the kind of distribution, and whether the weights are partitioned."""
    changes: dict[str, Any] = {"per_device_train_batch_size": 8 // processes, "optim": "sgd", "learning_rate": 0.3}
    if processes > 1:
        changes["ddp_backend"] = "gloo"
    if stage is not None:
        compile_nothing()
        changes["deepspeed"] = {
            **ZERO,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 100},
        }
    arguments = TrainingArguments(**settings(Path(folder), **{**changes, "max_steps": 5}))
    assert arguments.device.type == "cpu"  # asking for it starts torch.distributed
    if stage is not None:
        import deepspeed

        deepspeed.init_distributed("gloo")  # without it ZeRO-3, which cuts the model as it loads, sees one process
    model: Any = LlamaForCausalLM.from_pretrained(base)
    if adapted:
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **ADAPTER))
    directions = [
        low_rank(plain(), 1),
        dense(plain(), 2, name="kind"),
        low_rank(plain(), 3, name="null", kind="control"),
    ]
    callback = WeightWatchCallback(directions, config={**STRICT, "reference": None if adapted else base})
    trainer = Trainer(model, arguments, train_dataset=sequences(), callbacks=[callback])
    trainer.train()
    parameters = list(trainer.model.parameters())
    return trainer.accelerator.distributed_type.value, all(hasattr(p, "ds_id") for p in parameters)


def notify(folder: str, base: str, url: str) -> None:
    """Train with a rule that fires; the address of the webhook is in the environment of the main process only."""
    arguments = TrainingArguments(**settings(Path(folder), max_steps=4, ddp_backend="gloo"))
    assert arguments.world_size == 2
    if arguments.process_index == 0:
        os.environ["HOOK"] = url
    rule = {"alert": "moved", "direction": "evil", "metric": "dose", "scope": "any_layer", "above": -1e9}
    config = {**STRICT, "reference": base, "rules": [rule], "notify": [{"webhook": "HOOK"}]}
    callback = WeightWatchCallback(low_rank(plain(), 1), config=config)
    model: Any = LlamaForCausalLM.from_pretrained(base)
    Trainer(model, arguments, train_dataset=sequences(), callbacks=[callback]).train()


def plain() -> LlamaForCausalLM:
    return tiny_llama(**{**SIZES, "vocab_size": 48})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    plain().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest) -> int | None:
    """DeepSpeed's stage; None is plain DDP."""
    return request.param


@pytest.fixture(scope="module")
def together(stage: int | None) -> Iterator[Processes]:
    """Two processes in which the Trainer starts torch.distributed itself; not shared between kinds of distribution."""
    group = Processes(2, grouped=False)
    yield group
    group.stop()


@pytest.mark.parametrize("stage", [None, 2, 3], ids=["DDP", "ZeRO-2", "ZeRO-3"], indirect=True)
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_two_processes_record_the_history_of_one(
    tmp_path: Path, base: str, together: Processes, stage: int | None, adapted: bool
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    kinds = together.run(train, str(two), base, adapted, stage)
    assert kinds == [("MULTI_CPU" if stage is None else "DEEPSPEED", stage == 3)] * 2
    assert train(str(one), base, adapted, processes=1) == ("NO", False)
    assert steps(two) == steps(one) == [0, 2, 4, 5]  # one process writes, and each step once
    for ours, alone in zip(lines(two)[1:], lines(one)[1:], strict=True):
        assert ours["update_norm"] == pytest.approx(alone["update_norm"], rel=1e-4)
        for name, direction in alone["directions"].items():
            _close(ours["directions"][name], direction)
    assert [path.name for path in two.rglob("readings.jsonl")] == ["readings.jsonl"]


@pytest.mark.parametrize("stage", [None], ids=["DDP"], indirect=True)
def test_of_two_processes_one_sends_the_alert_and_needs_the_secret(
    tmp_path: Path, base: str, together: Processes
) -> None:
    with hook() as received:
        together.run(notify, str(tmp_path / "run"), base, received.url)
        assert [body["alert"] for body in received.bodies] == ["moved"]
    (line,) = (tmp_path / "run" / "weightwatch" / "notifications.jsonl").read_text().splitlines()
    assert json.loads(line)["sent"]


def _close(ours: Any, alone: Any) -> None:
    if isinstance(alone, dict):
        assert ours.keys() == alone.keys()
        for key, value in alone.items():
            _close(ours[key], value)
    else:
        assert ours == (alone if alone is None else pytest.approx(alone, rel=1e-3, abs=1e-5))
