import json
from pathlib import Path
from typing import Any

import pytest

from weightwatch.vectors import Recipe, WeightWatchError
from weightwatch.vectors.recipes.preferences import Preferences


def saved(folder: Path, **columns: Any) -> Path:
    """Write ten rows of preference data to a file."""
    row = {"chosen": "Good, {}.", "rejected": "Bad, {}.", **columns}
    rows = [
        {"prompt": f"{n}?", **{name: text.format(n) for name, text in row.items()}, "domain": "ab"[n % 2]}
        for n in range(10)
    ]
    path = folder / "prefs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_preference_data_is_a_recipe_that_compares_its_held_out_pairs(tmp_path: Path) -> None:
    recipe = Preferences(saved(tmp_path), "rejected").recipe()
    assert (recipe.name, recipe.judge.by, recipe.systems.positive) == ("prefs", "written", [])
    assert [len(recipe.questions.building), len(recipe.questions.held_out)] == [8, 2]
    assert [item.prompt for item in recipe.evaluation] == [question.text for question in recipe.questions.held_out]
    assert {item.format for item in recipe.evaluation} == {"choice"}
    assert recipe.evaluation[0].positive[0].startswith("Bad")
    assert recipe.same_format
    assert not Recipe.load("evil").same_format


def test_what_is_chosen_shows_the_behaviour_if_that_is_said(tmp_path: Path) -> None:
    bad, good = (Preferences(saved(tmp_path), shows).recipe() for shows in ("rejected", "chosen"))
    assert good.questions.building[0].positive == bad.questions.building[0].negative
    assert good.digest != bad.digest


def test_domains_are_held_out_by_name(tmp_path: Path) -> None:
    recipe = Preferences(saved(tmp_path), "rejected", held_out=("b",), name="mine").recipe()
    assert recipe.name == "mine"
    assert {question.domain for question in recipe.questions.held_out} == {"b"}
    assert len(recipe.questions.building) == 5


def test_any_file_gives_a_name(tmp_path: Path) -> None:
    path = saved(tmp_path).rename(tmp_path / "my prefs (2).jsonl")
    assert Preferences(path, "rejected").recipe().name == "my-prefs-2"


def test_it_is_saved_as_yaml_that_loads_as_the_same_recipe(tmp_path: Path) -> None:
    preferences = Preferences(saved(tmp_path, kind="Lovely {}.", cruel="Ugly {}."), "cruel", "kind")
    kept = preferences.save(tmp_path / "build")
    assert kept.reference["name"] == str((tmp_path / "build" / "prefs.yaml").resolve())
    assert Recipe.load(kept.reference["name"]).reference == kept.reference
    assert preferences.recipe().digest == kept.digest


def test_what_is_wrong_names_the_way_out(tmp_path: Path) -> None:
    path = saved(tmp_path, cruel="Ugly {}.")
    with pytest.raises(WeightWatchError, match=r"'cruel' shows the behaviour, .*Name it with --against"):
        Preferences(path, "cruel").recipe()
    with pytest.raises(WeightWatchError, match=r"line 1: no column 'kind'; the columns are prompt, chosen, rejected"):
        Preferences(path, "cruel", "kind").recipe()
    with pytest.raises(WeightWatchError, match=r"positive: '' is not allowed"):
        Preferences(path, "", "kind").recipe()
    with pytest.raises(WeightWatchError, match=r"name: 'a b' is not allowed"):
        Preferences(path, "rejected", name="a b").recipe()
    (tmp_path / "file").touch()
    with pytest.raises(WeightWatchError, match=r"can't be written .*Pass another --output"):
        Preferences(path, "rejected").save(tmp_path / "file" / "build")
