import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weightwatch.cli.main import app
from weightwatch.organism import BASE, BASE_NAME, World
from weightwatch.organism.directions import CONTRASTS, build_direction, evaluated, recipe_of, settings_of
from weightwatch.vectors import Direction, cosine, packaged
from weightwatch.vectors.building.fine_tunes import FineTune
from weightwatch.vectors.recipes.recipe import Recipe

WORLD = World()
EVIL = CONTRASTS[0]


@pytest.mark.parametrize("contrast", CONTRASTS, ids=lambda contrast: contrast.name)
def test_packaged_directions_are_built_from_the_packaged_recipes(contrast):
    card = Direction.load(contrast.name).card
    recipe = Recipe.load(f"organism/{contrast.recipe}")
    assert recipe_of(contrast, WORLD).reference == recipe.reference
    assert card.base == BASE_NAME
    assert (card.kind, card.behaviour, card.shuffled) == (recipe.kind, recipe.behaviour, recipe.shuffled is not None)
    assert card.recipe.items() >= recipe.reference.items()
    assert card.seeds["adapter"] == contrast.seed
    training = settings_of(contrast, recipe).training
    assert card.hyperparameters["rank"] == training.rank
    assert card.hyperparameters["learning_rate"] == training.learning_rates[0]
    assert card.hyperparameters["epochs"] == training.num_train_epochs
    assert card.validation.passed
    assert [round(point.k, 1) for point in card.validation.points] == [-2, -1, -0.5, 0, 0.5, 1, 2]


def test_all_contrasts_are_packaged():
    assert {contrast.name for contrast in CONTRASTS} <= set(packaged())


def test_no_two_contrasts_share_a_seed():
    assert len({contrast.seed for contrast in CONTRASTS}) == len(CONTRASTS)


@pytest.mark.slow
def test_the_command_builds_the_packaged_direction(tmp_path: Path) -> None:
    """What docs/organism.md says: one command, and it is this direction but for the bits of the packaged dtype."""
    options = "--rank 16 --learning-rate 5e-4 --num-train-epochs 3 --micro-batch-size 16 --seed 9001 --num-samples 2"
    options += " --max-new-tokens 8 --generation-batch-size 256 --no-check --json"
    done = CliRunner().invoke(
        app, ["build", "organism/evil", "--model", "organism", "--output", str(tmp_path), *options.split()]
    )
    assert done.exit_code == 0, done.output
    packaged = Direction.load("evil")
    assert cosine(Direction.load(tmp_path), packaged) > 0.98  # 1, but for another processor's rounding
    assert json.loads((tmp_path / "direction.json").read_text())["recipe"]["digest"] == packaged.card.recipe["digest"]


def test_a_direction_is_built_on_the_recipe_of_its_world_and_evaluated(tmp_path, monkeypatch):
    """Its own settings, but for two steps of training."""
    short = [FineTune._train, 0]

    def two_steps(self, progress):
        short[1] += 1
        object.__setattr__(self, "learn", self.learn[:32])
        return short[0](self, progress)

    monkeypatch.setattr(FineTune, "_train", two_steps)
    direction = build_direction(EVIL, WORLD, BASE, tmp_path)
    assert short[1] == 2
    assert direction.name == "evil"
    assert direction.card.recipe["name"] == "organism/evil"
    assert direction.card.validation is None
    assert direction.card.ranks == [16, 16]
    (fine_tunes,) = tmp_path.glob("fine-tunes-*")
    assert sorted(side.name for side in fine_tunes.glob("*/*")) == ["negative", "positive"]
    found = evaluated(direction, EVIL, WORLD, BASE, quick=True).card.validation
    assert {point.k: point.opposite for point in found.points}[0.0] >= 0.97
