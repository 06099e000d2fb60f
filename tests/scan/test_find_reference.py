"""Where θ₀ of a run's checkpoints is read from."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.models import dense, lora, low_rank, move, tiny_llama
from tests.support.runs import STRICT, trainer
from tests.support.scans import base_folder, full_run, live_readings, same, save, scan
from weightwatch import WeightWatchCallback
from weightwatch.scan.checkpoints import SavedCheckpoint, find
from weightwatch.scan.find_reference import RunReference
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.snapshot import Snapshot
from weightwatch.update.theta0 import establish
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.reader import Unmapped


def test_the_base_of_a_run_that_nobody_watched_is_taken_from_its_config(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    with pytest.raises(WeightWatchError, match=r"θ₀ of .* is unknown.*Pass --reference"):
        scan(run, evil)
    file = run / "checkpoint-1" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_name_or_path": str(reference)}))
    assert scan(run, evil).readings[0].update_norm > 0


def note(folder: Path, **entries: object) -> None:
    (folder / "weightwatch").mkdir(parents=True, exist_ok=True)
    (folder / "weightwatch" / "reference.json").write_text(json.dumps({"path": "", "adapters": False, **entries}))


def test_the_reference_of_a_watched_run_is_its_own(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    file = run / "checkpoint-1" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_name_or_path": str(reference)}))
    note(tmp_path, weights="checkpoint", path=str(run / "checkpoint-1"))  # of a run in the folder above
    assert scan(run, evil).to_json()["reference"] == str(reference)
    note(run, weights="given")
    with pytest.raises(WeightWatchError, match=r"was started with an explicit reference=\. Pass it as --reference"):
        scan(run, evil)
    note(run, weights="checkpoint", path=str(tmp_path / "none"))
    with pytest.raises(WeightWatchError, match=r"θ₀ recorded in .*reference\.json can't be read \(.*\)\. Pass --ref"):
        scan(run, evil)


def test_an_adapter_whose_base_is_not_here_is_measured_unchecked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = lora(tiny_llama())
    move(model, 3)
    model.peft_config["default"].base_model_name_or_path = "someone/elsewhere"
    model.save_pretrained(tmp_path / "adapter")
    done = scan(tmp_path / "adapter", save(low_rank(tiny_llama(), 1), tmp_path / "evil", tiny_llama()))
    assert done.readings[0].update_norm > 0
    assert "the base of" in caplog.text
    assert "someone/elsewhere" in caplog.text


def test_a_direction_of_another_base_is_refused(tmp_path: Path) -> None:
    run, reference, _ = full_run(tmp_path, 1)
    other = tiny_llama(seed=7)
    with pytest.raises(WeightWatchError, match=r"was built from the tiny one, not from .*base"):
        scan(run, save(dense(other, 1), tmp_path / "other", other), reference=str(reference))


def first(run: Path) -> SavedCheckpoint:
    return find(run)[0][0]


def test_a_reference_that_is_passed_comes_before_all_others(tmp_path: Path) -> None:
    run, reference, evil = full_run(tmp_path, 1)
    note(run, weights="checkpoint", path="/nowhere")
    found = RunReference(first(run), str(reference), [Direction.load(evil)], Unmapped)
    assert isinstance(found.source, Checkpoint)
    assert found.name == str(reference)
    assert found.weights(first(run)) is found.source


def test_the_base_of_an_adapter_is_the_one_that_its_settings_name(tmp_path: Path) -> None:
    base, reference = base_folder(tmp_path)
    model = lora(base)
    model.save_pretrained(tmp_path / "run" / "checkpoint-1")
    found = RunReference(first(tmp_path / "run"), None, [low_rank(base, 1)], Unmapped)
    assert found.name == str(reference)
    assert (found.folder, found.adapters) == (None, {})
    assert found.recorded.weights is None


def test_a_snapshot_of_a_watched_run_is_named_by_its_folder(tmp_path: Path) -> None:
    model = tiny_llama()
    establish(ModelView(model), tmp_path / "run" / "weightwatch", Reference())
    move(model, 1)
    model.save_pretrained(tmp_path / "run" / "checkpoint-1")
    found = RunReference(first(tmp_path / "run"), None, [dense(model, 1)], Unmapped)
    assert isinstance(found.source, Snapshot)
    assert found.name == str(found.folder) == str(tmp_path / "run" / "weightwatch")


def test_another_reference_or_other_files_of_it_give_another_signature(tmp_path: Path) -> None:
    run, reference, path = full_run(tmp_path, 1)
    evil = [Direction.load(path)]

    def signature(given: Path) -> list[object]:
        return RunReference(first(run), str(given), evil, Unmapped).signature()

    before = signature(reference)
    assert signature(reference) == before
    assert signature(run / "checkpoint-1") != before
    (reference / "model.safetensors").touch()
    assert signature(reference) != before


def test_checkpoints_of_two_runs_in_one_folder_are_measured_each_from_its_own_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evil = save(low_rank(tiny_llama(), 1), tmp_path / "evil")
    callback = WeightWatchCallback(evil, config=STRICT)
    saves = {"save_strategy": "steps", "save_steps": 2}
    trainer(tiny_llama(0), tmp_path / "run", callback, max_steps=4, **saves).train()
    (_, before) = live_readings(tmp_path / "run")
    trainer(tiny_llama(7), tmp_path / "run", callback, max_steps=2, **saves).train()
    (now,) = live_readings(tmp_path / "run")
    first, second = scan(tmp_path / "run", evil).readings
    same(first, now)
    same(second, before)
    assert "checkpoint-4: it is of another run" in caplog.text
    (alone,) = scan(tmp_path / "run" / "checkpoint-4", evil).readings
    same(alone, before)
    (aside,) = (tmp_path / "run").glob("weightwatch-*")
    shutil.rmtree(aside)
    with pytest.raises(WeightWatchError, match=r"θ₀ of .*checkpoint-4 is unknown.*Pass --reference"):
        scan(tmp_path / "run" / "checkpoint-4", evil)
