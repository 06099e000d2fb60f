from pathlib import Path

import pytest

from tests.vectors.building.test_pipeline import SETTINGS, Calls, built, stages
from weightwatch.organism import BASE
from weightwatch.vectors import Direction
from weightwatch.vectors.arithmetic import cosines
from weightwatch.vectors.building import bank
from weightwatch.vectors.building.output import STAGES
from weightwatch.vectors.catalog import bank as stored
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.recipes.recipe import Recipe


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank") / "evil"
    made, _ = built(Recipe.load("organism/evil"), folder / STAGES)
    made.direction.save(folder)
    return folder


def controls_of(evil: Path, count: int, compress: int | None = None) -> tuple[list[Direction], Calls]:
    """Build controls beside the direction, and return what was told of it."""
    recipe, calls = Recipe.load("organism/evil"), Calls()
    rate = Direction.load(evil).card.hyperparameters["learning_rate"]
    made = bank.build(
        count, recipe, str(BASE), evil, chosen(recipe), SETTINGS, rate, lambda *call: calls.append(call), None, compress
    )
    return list(made), calls


def test_controls_are_built_from_the_same_answers_with_half_of_the_labels_swapped(evil: Path) -> None:
    controls, calls = controls_of(evil, 2)
    card = Direction.load(evil).card
    assert [(each.name, each.card.kind, each.card.shuffled) for each in controls] == [
        ("evil-shuffled-1", "control", True),
        ("evil-shuffled-2", "control", True),
    ]
    assert not {"pilot", "answers", "verdicts"} & set(stages(calls))  # those of the direction are there
    assert {each.card.hyperparameters["learning_rate"] for each in controls} == {card.hyperparameters["learning_rate"]}
    assert {each.card.hyperparameters["examples"] for each in controls} == {card.hyperparameters["examples"]}
    assert len({card.data_hash, *(each.card.data_hash for each in controls)}) == 3
    alike = cosines([Direction.load(evil), *controls])
    assert alike[0, 1:].abs().max() < 0.5
    assert stored([evil]) == [evil / "controls" / "evil-shuffled-1", evil / "controls" / "evil-shuffled-2"]
    assert [Direction.load(each).card for each in stored([evil])] == [each.card.portable() for each in controls]


def test_a_second_build_trains_nothing_and_a_smaller_one_is_kept_small(evil: Path) -> None:
    (small,), calls = controls_of(evil, 1, compress=1)
    assert not [call for call in calls if call[0].startswith("seed-")]
    assert {delta.rank for delta in small.deltas.values()} == {1}
