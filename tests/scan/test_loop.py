"""Which checkpoints of a run a scan measures, and which it passes over."""

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.models import dense, move, tiny_llama
from weightwatch.scan.checkpoints import SavedCheckpoint, run
from weightwatch.scan.loop import ScanLoop, arriving, present
from weightwatch.scan.scanner import Scan
from weightwatch.vectors import WeightWatchError


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder with a base, a direction and a run of three checkpoints."""
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    dense(model, 1).save(tmp_path / "evil")
    for step in (1, 2, 3):
        move(model, step)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path


def scanner(stage: Path) -> Scan:
    return Scan([str(stage / "evil")], reference=str(stage / "base"))


def spoil(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Make all weights NaN; return those that were there."""
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * float("nan") for name, tensor in tensors.items()}, file, {"format": "pt"})
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_a_run_is_recorded_in_its_folder_and_a_single_checkpoint_is_not(stage: Path) -> None:
    (found,), folder = present(str(stage / "run"))
    assert [one.step for one in found] == [1, 2, 3]
    assert folder == stage / "run" / "weightwatch-scan"
    (found,), none = present(str(stage / "run" / "checkpoint-2"))
    assert [one.step for one in found] == [2]
    assert none is None


def test_an_incomplete_checkpoint_of_a_run_is_passed_over(stage: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(stage / "run" / "checkpoint-2" / "model.safetensors", 5000)
    rounds, _ = present(str(stage / "run"))
    with caplog.at_level(logging.WARNING, "weightwatch"):
        assert [reading.step for reading in ScanLoop(scanner(stage)).measure(rounds)] == [1, 3]
    assert "checkpoint-2 is passed over because it is incomplete: model.safetensors has 5000 of" in caplog.text


def test_a_checkpoint_that_cannot_be_measured_is_noted_and_the_others_are_measured(stage: Path) -> None:
    spoil(stage / "run" / "checkpoint-2")
    loop = ScanLoop(scanner(stage))
    assert [reading.step for reading in loop.measure([run(stage / "run")])] == [1, 3]
    assert list(loop.unmeasured) == ["checkpoint-2"]
    assert "NaN" in loop.unmeasured["checkpoint-2"]


def test_a_fault_of_the_first_checkpoint_ends_the_scan(stage: Path) -> None:
    spoil(stage / "run" / "checkpoint-1")
    with pytest.raises(WeightWatchError, match="NaN"):
        list(ScanLoop(scanner(stage)).measure([run(stage / "run")]))


def test_a_failed_checkpoint_is_tried_again_when_its_files_have_changed(stage: Path) -> None:
    tried: list[str] = []

    def measuring(one: SavedCheckpoint) -> AbstractContextManager[None]:
        tried.append(one.name)
        return nullcontext()

    weights = spoil(stage / "run" / "checkpoint-3")
    loop, folder = ScanLoop(scanner(stage), measuring), stage / "run"
    assert [reading.step for reading in loop.measure([run(folder), run(folder)])] == [1, 2]
    assert tried.count("checkpoint-3") == 1
    save_file(weights, folder / "checkpoint-3" / "model.safetensors", {"format": "pt"})
    assert [reading.step for reading in loop.measure([run(folder)])] == [3]
    assert loop.unmeasured == {}


def test_a_run_is_followed_from_the_checkpoints_that_it_has(stage: Path) -> None:
    rounds, folder = arriving(str(stage / "run"), poll=0.01, stop_after=3)
    assert folder == stage / "run" / "weightwatch-scan"
    assert [reading.step for reading in ScanLoop(scanner(stage)).measure(rounds)] == [1, 2, 3]
    with pytest.raises(WeightWatchError, match=r"no folder .* to follow\. Start the training first"):
        arriving(str(stage / "none"), poll=1.0)
