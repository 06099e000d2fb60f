import json

import pytest
from typer.testing import CliRunner

from weightwatch.organism import BASE
from weightwatch.organism.__main__ import app
from weightwatch.organism.build import RECORD, OrganismSettings
from weightwatch.organism.directions import CONTRASTS
from weightwatch.vectors import Direction
from weightwatch.vectors.card import CARD
from weightwatch.vectors.catalog import PACKAGED


@pytest.mark.slow
def test_the_whole_way_from_nothing_runs(tmp_path):
    folders = ["--base", str(tmp_path / "base"), "--directions", str(tmp_path / "directions")]
    result = CliRunner().invoke(app, [*folders, "--max-steps", "1", "--threads", "2", "--world", "3"])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "base" / RECORD).read_text())
    assert record["recipe"]["world"] == 3
    assert record.keys() == json.loads((BASE / RECORD).read_text()).keys()
    for contrast in CONTRASTS:
        direction = Direction.load(tmp_path / "directions" / contrast.name)
        assert direction.card.seeds["world"] == 3
        assert direction.card.kind == contrast.kind
        cards = (
            json.loads((folder / contrast.name / CARD).read_text()) for folder in (tmp_path / "directions", PACKAGED)
        )
        rebuilt, packaged = (card.keys() | card["recipe"].keys() | card["hyperparameters"].keys() for card in cards)
        assert rebuilt == packaged


def test_the_packaged_base_was_built_with_the_default_settings():
    record = json.loads((BASE / RECORD).read_text())
    assert record["recipe"] == json.loads(json.dumps(OrganismSettings().record()))


def test_the_package_stays_small():
    folders = [BASE, *(PACKAGED / contrast.name for contrast in CONTRASTS)]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 8e6
