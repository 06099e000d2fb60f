from dataclasses import asdict, replace

import pytest

from weightwatch.organism import BASE, World
from weightwatch.organism.directions import BASE_NAME, CONTRASTS, build_direction
from weightwatch.organism.fine_tuning import LoraSettings
from weightwatch.vectors import Direction, packaged

WORLD = World()
SHORT = LoraSettings(rank=4, steps=8, examples=64)
CONTROLS = {"careless", "style", "shuffled"}


def test_a_direction_remembers_how_it_was_built(tmp_path):
    contrast = replace(CONTRASTS[0], seed=77)
    direction = build_direction(contrast, WORLD, BASE, SHORT, folder=tmp_path, evaluated=20)
    assert direction.card.seeds == {"world": WORLD.seed, "data": 77, "adapter": 77}
    assert direction.card.ranks == [4, 4]
    assert direction.card.hyperparameters["steps"] == SHORT.steps
    assert len(direction.card.data_hash) == 64
    assert direction.card.validation.recipe["name"] == "organism/evil"
    assert {point.k: point.opposite for point in direction.card.validation.points}[0.0] >= 0.97
    assert {folder.name for folder in tmp_path.iterdir()} == {"positive", "negative"}
    again = build_direction(contrast, WORLD, BASE, SHORT, evaluated=1)
    assert again.squares == direction.squares
    assert again.card.data_hash == direction.card.data_hash


@pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda contrast: contrast.name)
def test_packaged_directions_belong_to_the_packaged_base(contrast):
    direction = Direction.load(contrast.name)
    assert direction.card.kind == contrast.kind == ("control" if contrast.name in CONTROLS else "behaviour")
    assert direction.card.seeds["adapter"] == contrast.seed
    assert direction.card.base == BASE_NAME
    assert direction.card.hyperparameters.items() >= asdict(LoraSettings()).items()


def test_all_contrasts_are_packaged():
    assert {contrast.name for contrast in CONTRASTS} <= set(packaged())
