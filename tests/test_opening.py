from pathlib import Path

import pytest
import torch

from tests.support.models import tiny_llama
from weightwatch.config import Config
from weightwatch.faults import Faults
from weightwatch.opening import Opening
from weightwatch.record.journal import Journal
from weightwatch.setup import Setup
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.ranks import ALONE


def opening(folder: Path) -> tuple[Opening, Journal, Faults]:
    journal = Journal(folder / "weightwatch")
    faults = Faults(journal, keep=False)
    return Opening(journal, faults, ALONE), journal, faults


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "weightwatch").iterdir()}


SETUP = Setup(method="LORA", rank=4, every=10, directions={"evil": "3f2a"})
SNAPSHOT = "reference-00000-of-00001.safetensors"


def test_a_run_begins_with_an_id_a_reference_and_its_settings(tmp_path: Path) -> None:
    first, _, _ = opening(tmp_path)
    first.claim(0, None, fresh=True)
    first.establish(ModelView(tiny_llama()), Reference())
    first.open(0, Config(), SETUP)
    assert files(tmp_path) == {"run.json", "reference.json", SNAPSHOT, "config.yaml", "setup.json"}
    assert Setup.read(tmp_path / "weightwatch") == SETUP


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"witness": "none"}, {"witness": "none"}, ""),
        (None, None, ""),
        (None, {"witness": "none"}, "it was (no guard), and is (mode: subspace, witness: none)"),
        ({"witness": "none"}, None, "it was (mode: subspace, witness: none), and is (no guard)"),
        (
            {"witness": "none"},
            {"witness": "none", "mode": "subspace", "rank": 4},
            "and is (mode: subspace, witness: none, rank: 4).",
        ),
    ],
)
def test_a_guard_that_has_changed_is_told_of_at_a_resume(
    before: dict[str, object] | None,
    now: dict[str, object] | None,
    told: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, _, _ = opening(tmp_path)
    first.claim(0, None, fresh=True)
    first.establish(ModelView(tiny_llama()), Reference())
    first.open(0, Config.load({"guard": before}), SETUP)
    again, _, _ = opening(tmp_path)
    again.claim(10, first.folder.run, fresh=False)
    again.open(10, Config.load({"guard": now}), SETUP)
    assert ("the guard has changed at the resume: " in caplog.text) == bool(told)
    assert told in caplog.text


def test_where_nothing_can_be_written_it_begins_in_memory_and_is_written_later(tmp_path: Path) -> None:
    (tmp_path / "weightwatch").write_text("in the way")
    first, journal, faults = opening(tmp_path)
    model = tiny_llama()
    first.claim(0, None, fresh=True)
    reference = first.establish(ModelView(model), Reference())
    first.open(0, Config(), SETUP)
    name, weight = next(iter(model.named_parameters()))
    box = tuple(slice(0, size) for size in weight.shape)
    assert reference.weights is not None
    assert torch.equal(reference.weights.read(name, box), weight)
    assert isinstance(journal.fault, OSError)
    faults.raise_fatal()
    (tmp_path / "weightwatch").unlink()
    journal.flush()
    assert journal.fault is None
    assert files(tmp_path) >= {"run.json", "reference.json", SNAPSHOT, "config.yaml"}
    again, _, _ = opening(tmp_path)
    again.claim(10, first.folder.run, fresh=False)
    found = again.restore(ModelView(model), Reference())
    assert found.weights is not None
    assert torch.equal(found.weights.read(name, box), weight)
