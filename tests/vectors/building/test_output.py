"""The folder of a direction: free, or with an earlier direction of the same recipe and base."""

import shutil
from pathlib import Path

import pytest

from tests.support.models import low_rank, tiny_llama
from weightwatch.vectors import Recipe, WeightWatchError
from weightwatch.vectors.building.output import only_build, output_folder
from weightwatch.vectors.catalog import PACKAGED

EVIL, NAME = Recipe.load("organism/evil"), "weightwatch/organism"


def test_by_default_it_goes_by_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_folder(EVIL, NAME, None) == Path("directions/organism/evil")
    assert Path("directions/organism/evil").is_dir()
    Path("mine.yaml").write_text("name: other\nextends: evil\n")
    assert output_folder(Recipe.load("mine.yaml"), NAME, None) == Path("directions/mine")
    assert output_folder(EVIL, NAME, None, behind=True) == Path("directions/organism/evil-behind")


def test_only_the_same_recipe_and_base_may_be_built_again(tmp_path: Path) -> None:
    shutil.copytree(PACKAGED / "evil", tmp_path / "evil")
    card = (tmp_path / "evil" / "direction.json").read_text()
    with pytest.raises(WeightWatchError, match=r"has direction 'evil', built from .* on weightwatch/organism\. Pass"):
        output_folder(EVIL, "another/base", tmp_path / "evil")
    with pytest.raises(WeightWatchError, match="Pass another --output"):
        output_folder(Recipe.load("organism/style"), NAME, tmp_path / "evil")
    assert (tmp_path / "evil" / "direction.json").read_text() == card


def test_a_direction_and_the_witness_that_is_built_behind_its_guard_do_not_replace_each_other(tmp_path: Path) -> None:
    card = {"base": NAME, "recipe": EVIL.reference}
    plain = low_rank(tiny_llama(), 1).with_card(**card)
    plain.save(tmp_path / "plain")
    plain.with_card(hyperparameters={"guard": {"mode": "update"}}).save(tmp_path / "behind")
    for name, behind in (("plain", False), ("behind", True)):
        assert output_folder(EVIL, NAME, tmp_path / name, behind=behind) == tmp_path / name
        with pytest.raises(WeightWatchError, match="Pass another --output"):
            output_folder(EVIL, NAME, tmp_path / name, behind=not behind)


def test_a_base_and_a_recipe_that_are_paths_are_known_again(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: other\nextends: evil\n")
    recipe = Recipe.load(tmp_path / "mine.yaml")
    metadata = {"base": str(tmp_path / "base"), "recipe": recipe.reference}
    low_rank(tiny_llama(), 1).with_card(**metadata).save(tmp_path / "out")
    assert output_folder(recipe, str(tmp_path / "base"), tmp_path / "out") == tmp_path / "out"
    with pytest.raises(WeightWatchError, match=r"built from mine\.yaml on base\. Pass"):
        output_folder(recipe, str(tmp_path / "another"), tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(WeightWatchError, match=r"can't be written \(Not a directory\)"),
        only_build(tmp_path / "file" / "x"),
    ):
        pass


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightWatchError, match=r"file can't be created \(File exists\)"):
        output_folder(EVIL, NAME, tmp_path / "file")
