from pathlib import Path

import pytest

from weightwatch.cli.build_options import exclusive, preferences
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.recipes.preferences import Preferences

FILE = Path("prefs.jsonl")


def test_there_is_a_recipe_or_a_file_of_pairs() -> None:
    assert preferences("evil", None, None, None, None, None) is None
    given = preferences(None, FILE, "cruel", "kind", ["sport"], "mine")
    assert given == Preferences(FILE, "cruel", "kind", ("sport",), "mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, None, None, None, None), "neither a recipe nor --pairs. Name a recipe, or pass --pairs"),
        (("evil", FILE, "rejected", None, None, None), "both a recipe and --pairs"),
        ((None, FILE, None, None, None, None), "Pass --shows with the name of their column"),
        (("evil", None, None, None, ["sport"], None), "--held-out has no effect beside a recipe"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message: str) -> None:
    with pytest.raises(WeightWatchError, match=message):
        preferences(*arguments)


def test_an_option_without_effect_is_named() -> None:
    exclusive(False, "--no-check", {"--control": ["style"]})
    with pytest.raises(WeightWatchError, match=r"--control has no effect beside --no-check\. Leave out either"):
        exclusive(True, "--no-check", {"--full-check": False, "--control": ["style"]})
