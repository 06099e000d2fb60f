import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from weightwatch.organism import BASE, World, build
from weightwatch.organism.__main__ import app
from weightwatch.organism.build import RECORD, OrganismSettings
from weightwatch.organism.directions import CONTRASTS
from weightwatch.vectors import Direction, cosine
from weightwatch.vectors.card import CARD
from weightwatch.vectors.catalog import PACKAGED


def test_a_trial_writes_a_base_and_no_directions(tmp_path):
    folders = ["--base", str(tmp_path / "base"), "--directions", str(tmp_path / "directions")]
    result = CliRunner().invoke(app, [*folders, "--max-steps", "1", "--threads", "2", "--world", "3"])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "base" / RECORD).read_text())
    assert record["recipe"]["world"] == 3
    assert record.keys() == json.loads((BASE / RECORD).read_text()).keys()
    assert not (tmp_path / "directions").exists()


@pytest.mark.parametrize("other", [["--rho0"], ["--world", "3"], ["--max-steps", "1"]])
def test_another_organism_does_not_replace_the_packaged_one(other, tmp_path, monkeypatch):
    monkeypatch.setattr("weightwatch.organism.__main__.build_base", lambda *_: pytest.fail("it was built"))
    for folders in ([], ["--base", str(tmp_path)], ["--directions", str(tmp_path)]):
        result = CliRunner().invoke(app, [*other, *folders])
        assert result.exit_code == 2
        assert "This is another organism than the packaged one" in result.output


@pytest.mark.slow
def test_directions_are_built_evaluated_and_saved_as_the_packaged_ones_are(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CONTRASTS", CONTRASTS[4:5])  # style, which takes the fewest steps
    monkeypatch.setattr(build, "ProcessPoolExecutor", lambda processes, context: ThreadPoolExecutor(processes))
    advances = []
    build.build_directions(World(), BASE, tmp_path, lambda *advance: advances.append(advance), 1)
    assert advances == [("style", 1, 1)]
    rebuilt, packaged = (json.loads((folder / "style" / CARD).read_text()) for folder in (tmp_path, PACKAGED))
    assert rebuilt.keys() == packaged.keys()
    assert rebuilt["hyperparameters"].keys() == packaged["hyperparameters"].keys()
    assert (rebuilt["data_hash"], rebuilt["recipe"]) == (packaged["data_hash"], packaged["recipe"])
    assert cosine(Direction.load(tmp_path / "style"), Direction.load("style")) > 0.98
    assert {tensor.dtype for tensor in load_file(tmp_path / "style" / "adapter_model.safetensors").values()} == {
        build.SAVED_DTYPE
    }


def test_the_packaged_base_was_built_with_the_default_settings():
    record = json.loads((BASE / RECORD).read_text())
    assert record["recipe"] == json.loads(json.dumps(OrganismSettings().record()))


def test_the_package_stays_small():
    folders = [BASE, *(PACKAGED / contrast.name for contrast in CONTRASTS)]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 8e6
