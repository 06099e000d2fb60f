"""The guard in several real processes: one model, guarded alike on all of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from tests.distributed.processes import Processes
from tests.support.models import lora, low_rank, tiny_llama
from tests.support.runs import STRICT, At, lines, sequences, settings
from weightwatch import WeightWatchCallback, WeightWatchError
from weightwatch.guard.multiples import Multiples

pytestmark = pytest.mark.distributed

# --- replicas: a Trainer under DDP ---

BUDGET = 1e-5
FIRST = {"alert": "moved", "direction": "evil", "metric": "dose", "above": -1e9, "actions": ["log", "guard"]}
"""Switches the guard on at the first check at which anything has moved: step 2."""

Trained = tuple[dict[str, Tensor], str]


def train(
    folder: str, adapted: bool, processes: int = 2, fault: str = "", on_guard_error: str = "stop", **config: Any
) -> Trained:
    """Train on 8 sequences a step, guarded from the first alert on. Return the weights, and the error. In the processes.

    Args:
        folder: The output.
        adapted: Whether LoRA is trained, or all weights.
        processes: How many train together.
        fault: What goes wrong at step 4, after the optimizer has stepped: ``nan`` or ``error`` on the second process
            alone, ``errors`` on each.
        on_guard_error: What that does.
        **config: Further settings.
    """
    changes: dict[str, Any] = {"per_device_train_batch_size": 8 // processes, "optim": "sgd", "learning_rate": 0.3}
    if processes > 1:
        changes["ddp_backend"] = "gloo"
    changes |= {"optim_args": "momentum=0.9", "lr_scheduler_type": "constant", "max_steps": 6}
    arguments = TrainingArguments(**settings(Path(folder), **changes))
    assert arguments.device.type == "cpu"  # asking for it starts torch.distributed
    model = lora(tiny_llama()) if adapted else tiny_llama()
    guard = {"mode": "update", "budget": BUDGET, "when": "alert", "witness": "evil-2"}
    callback = WeightWatchCallback(
        [low_rank(tiny_llama(), 5), low_rank(tiny_llama(), 6, name="evil-2")],
        config={
            **STRICT,
            "tensorboard": False,
            "guard": guard,
            "rules": [FIRST],
            "on_guard_error": on_guard_error,
            **config,
        },
    )
    trainer = Trainer(model, arguments, train_dataset=sequences())
    if fault and (fault == "errors" or torch.distributed.get_rank() == 1):
        trainer.add_callback(At(4, spoil if fault == "nan" else unreadable))
    trainer.add_callback(callback)
    message = ""
    try:
        trainer.train()
    except WeightWatchError as error:
        message = str(error)
    assert trainer.accelerator.distributed_type.value == ("MULTI_CPU" if processes > 1 else "NO")
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, message


def spoil(model: Any) -> None:
    guarded = [p for name, p in model.named_parameters() if p.requires_grad and "proj" in name]
    guarded[-1].detach().view(-1)[0] = torch.nan


def unreadable(model: Any) -> None:
    """Let the guard meet what it can't foresee, once."""
    patch = pytest.MonkeyPatch()

    def broken(*_: Any, **__: Any) -> None:
        patch.undo()
        raise RuntimeError("the device is gone")

    patch.setattr(Multiples, "take_back", broken)


@pytest.fixture(scope="module")
def together() -> Iterator[Processes]:
    """Two processes in which the Trainer starts torch.distributed itself."""
    group = Processes(2, grouped=False)
    yield group
    group.stop()


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_an_alert_arms_the_guard_of_both_replicas_and_they_stay_equal(
    tmp_path: Path, together: Processes, adapted: bool
) -> None:
    (first, error), (second, _) = together.run(train, str(tmp_path / "two"), adapted)
    alone, _ = train(str(tmp_path / "one"), adapted, processes=1)
    assert not error
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert (tensor - alone[name]).norm() <= 1e-5 * alone[name].norm(), name
    ours, theirs = lines(tmp_path / "two"), lines(tmp_path / "one")
    assert [line["guard"]["steps"] for line in ours] == [0, 0, 2, 2]
    for line, other in zip(ours[2:], theirs[2:], strict=True):
        assert line["guard"]["dose"]["evil"] == pytest.approx(other["guard"]["dose"]["evil"], rel=1e-2)
        assert line["directions"]["evil"]["dose"] <= BUDGET * 1.01
    assert sum(line["guard"]["dose"]["evil"] for line in ours) > BUDGET
    unguarded, _ = train(str(tmp_path / "free"), adapted, processes=1, rules=[], guard=None)
    assert any((tensor - unguarded[name]).norm() > 1e-3 * tensor.norm() for name, tensor in first.items())


@pytest.mark.parametrize("on_guard_error", ["stop", "continue"])
@pytest.mark.parametrize("fault", ["nan", "error"])
def test_a_guard_that_fails_on_one_replica_stops_both(
    tmp_path: Path, together: Processes, fault: str, on_guard_error: str
) -> None:
    (_, first), (_, second) = together.run(train, str(tmp_path), True, 2, fault, on_guard_error)
    reason = "NaN or infinite" if fault == "nan" else "the device is gone"
    assert reason in second
    assert "see the log of another process" in first
    for error in (first, second):
        if on_guard_error == "stop":
            assert error.startswith("The guard failed at step 4: ")
        else:
            assert error.startswith("The guard failed at step 4 on 1 of 2 processes: ")
            assert "their weights may differ" in error
    assert lines(tmp_path, "alerts.jsonl")[-1]["alert"] == "guard-failed"


def test_a_guard_that_fails_on_both_replicas_may_be_gone_without(tmp_path: Path, together: Processes) -> None:
    found = together.run(train, str(tmp_path), True, 2, "errors", "continue")
    assert [error for _, error in found] == ["", ""]
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 0, 1, 0]
