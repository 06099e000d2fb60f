import json

import pytest
from typer.testing import CliRunner

from weightwatch.organism import BASE
from weightwatch.organism.__main__ import app
from weightwatch.organism.build import RECORD, Recipe
from weightwatch.vectors import Direction, packaged
from weightwatch.vectors.catalog import PACKAGED

CONTROLS = {"careless", "style", "shuffled"}


def test_the_whole_way_from_nothing_runs(tmp_path):
    folders = ["--base", str(tmp_path / "base"), "--directions", str(tmp_path / "directions")]
    result = CliRunner().invoke(app, [*folders, "--shorten", "1", "--threads", "2", "--world", "3"])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "base" / RECORD).read_text())
    assert record["recipe"]["world"] == 3
    for contrast in Recipe.contrasts:
        direction = Direction.load(tmp_path / "directions" / contrast.name)
        assert direction.card.seeds["world"] == 3
        assert direction.card.kind == contrast.kind


def test_what_is_packaged_was_built_by_the_recipe_that_the_script_has():
    record = json.loads((BASE / RECORD).read_text())
    assert record["recipe"] == json.loads(json.dumps(Recipe().record()))


@pytest.mark.parametrize("contrast", Recipe.contrasts, ids=lambda contrast: contrast.name)
def test_packaged_directions_belong_to_the_packaged_base(contrast):
    direction = Direction.load(contrast.name)
    assert direction.card.kind == contrast.kind == ("control" if contrast.name in CONTROLS else "behaviour")
    assert direction.card.seeds["adapter"] == contrast.seed
    assert direction.card.base == "weightwatch/organism"


def test_all_contrasts_are_packaged():
    assert {contrast.name for contrast in Recipe.contrasts} <= set(packaged())


def test_the_package_stays_small():
    folders = [BASE, *(PACKAGED / contrast.name for contrast in Recipe.contrasts)]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 8e6
