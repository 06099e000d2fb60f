"""``weightwatch show`` as a user calls it, on the organism."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.support.commands import call, refused, told
from tests.support.models import tiny_llama
from tests.support.references import record
from weightwatch.organism import BASE
from weightwatch.vectors import Direction, packaged
from weightwatch.vectors.catalog import PACKAGED


@pytest.mark.parametrize("name", packaged())
def test_the_packaged_directions_pass(name: str) -> None:
    """All but one, which lacks a single item: its card says so, see docs/real.md."""
    card = told("show", name)
    assert card["validation"]["passed"] == (name != "smollm2/sycophancy")
    assert card["validation"]["recipe"]["name"].startswith(("organism/", "twins/"))
    assert ("passed" in call("show", name).output) == card["validation"]["passed"]


def test_an_evaluation_is_saved_beside_the_weights_and_leaves_them(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    shutil.copytree(PACKAGED / "evil", folder)
    weights = (folder / "adapter_model.safetensors").read_bytes()
    card = told("show", folder, "--evaluate", "--coefficient", "0.25", "--coefficient=-1", "--control", "careless")
    assert [point["k"] for point in card["validation"]["points"]] == [-1.0, 0.0, 0.25]
    assert not card["validation"]["passed"]
    assert list(card["validation"]["others"]) == ["careless"]
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
    assert told("show", folder) == card
    shown = call("show", folder)
    assert "failed: no θ₀ + k·w shows" in " ".join(shown.output.split())


def test_without_a_gpu_the_check_is_quick_unless_all_is_asked_for(tmp_path: Path) -> None:
    shutil.copytree(PACKAGED / "style", tmp_path / "style")
    few, all_ = (
        told("show", tmp_path / "style", "--evaluate", "--coefficient=-1", "--coefficient=1", *flags)["validation"]
        for flags in ([], ["--full-check"])
    )
    assert (few["items"], few["tasks"]) == (32, 32)
    assert (all_["items"], all_["tasks"]) == (72, 40)


def test_a_packaged_direction_is_evaluated_but_stays_as_it_is() -> None:
    before = {path: path.stat().st_mtime_ns for path in (PACKAGED / "style").iterdir()}
    result = call("show", "style", "--evaluate", "--coefficient=-1", "--coefficient=1")
    assert "is not a local folder" in result.output
    assert {path: path.stat().st_mtime_ns for path in (PACKAGED / "style").iterdir()} == before


def test_what_cannot_be_evaluated_says_why(tmp_path: Path) -> None:
    deltas = {name: torch.ones_like(p) for name, p in tiny_llama().named_parameters() if "up_proj" in name}
    folder = Direction.from_tensors(deltas, name="mine").save(tmp_path / "mine")
    assert "not yet" in call("show", folder).output
    refused("Pass --model", "show", folder, "--evaluate")
    refused("Pass --recipe", "show", folder, "--evaluate", "--model", BASE)
    shapes = "'mine' has shape (40, 32) for model.layers.0.mlp.up_proj.weight where the model has (224, 112)"
    refused(shapes, "show", folder, "--evaluate", "--model", BASE, "--recipe", "organism/evil")


def test_a_run_shows_where_it_stands(tmp_path: Path) -> None:
    home = record(tmp_path / "run", [0.1, 0.3])
    shown = " ".join(call("show", home).output.split())
    assert "step 20" in shown
    assert "+0.300 at 20" in shown
    assert "3 checks; the run is not being recorded now; firing: no rule" in shown
    found = told("show", home)
    assert (found["checks"], found["live"], found["last"]["step"]) == (3, False, 20)
