from pathlib import Path
from typing import Any

import pytest

from tests.rules.test_engine import rule
from tests.support.references import record, records
from weightwatch import WeightWatchError
from weightwatch.calibration.references import Reference, alike, far
from weightwatch.rules.manager import RuleManager
from weightwatch.setup import SETUP


def test_a_run_is_found_by_its_output_folder_and_by_its_record(tmp_path: Path) -> None:
    home = record(tmp_path / "run", [0.1, 0.2])
    outer, inner = Reference.load(home), Reference.load(home / "weightwatch")
    assert [each.step for each in outer.readings] == [10, 20]  # nothing has moved at step 0
    assert outer.readings == inner.readings
    assert outer.setup.rank == 16


@pytest.mark.parametrize(("checks", "score"), [(1, 0.5), (2, 0.3), (3, 0.3), (4, 0.2), (5, 0.1)])
def test_the_score_is_the_largest_threshold_that_the_rule_passes(tmp_path: Path, checks: int, score: float) -> None:
    reference = Reference.load(record(tmp_path / "run", [0.2, 0.5, 0.3, 0.3, 0.1]))
    assert reference.score(rule(**{"for": checks})) == score
    for above, fires in ((score - 1e-6, True), (score, False)):
        manager = RuleManager([rule(above=above, **{"for": checks})], lambda _: True)
        manager.replay(reference.readings)
        assert bool(manager.alerts) == fires


def test_a_run_with_too_few_checks_for_the_rule_is_named(tmp_path: Path) -> None:
    reference = Reference.load(record(tmp_path / "short", [0.2]))
    with pytest.raises(WeightWatchError, match="short has 1 checks, and rule 'drift' takes 2 in a row"):
        reference.score(rule(**{"for": 2}))


def test_a_run_that_was_not_watched_along_the_direction_is_named(tmp_path: Path) -> None:
    reference = Reference.load(record(tmp_path / "other", [0.2]))
    with pytest.raises(WeightWatchError, match=r"other: Rule 'drift' is about the direction 'refusal', which is not"):
        reference.score(rule(direction="refusal"))


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"has no readings.jsonl, neither itself nor in a folder weightwatch"):
        Reference.load(tmp_path)


@pytest.mark.parametrize("setup", [None, "{", '{"rank": "many"}'])
def test_a_record_that_does_not_say_how_it_was_trained_is_refused(tmp_path: Path, setup: str | None) -> None:
    file = record(tmp_path / "run", [0.2]) / "weightwatch" / SETUP
    file.unlink() if setup is None else file.write_text(setup)
    with pytest.raises(WeightWatchError, match=r"does not say how its run was trained \(setup.json is missing or"):
        Reference.load(tmp_path / "run")


def test_a_nan_in_a_reading_names_the_file_and_the_line(tmp_path: Path) -> None:
    file = record(tmp_path / "run", [0.2, 0.25]) / "weightwatch" / "readings.jsonl"
    file.write_text(file.read_text().replace("0.25", "NaN"))
    with pytest.raises(WeightWatchError, match=r"readings.jsonl, line 3 is damaged"):
        Reference.load(tmp_path / "run")


def test_a_run_without_a_check_after_its_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match="has no reading after step 0"):
        Reference.load(record(tmp_path / "run", []))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trainer": "DPOTrainer"}, "DPOTrainer, not SFTTrainer"),
        ({"method": "full", "rank": None}, "full, not LORA, rank None, not 16"),
        ({"rank": 64}, "rank 64, not 16"),
        ({"optimizer": "sgd"}, "sgd, not adamw_torch"),
        ({"learning_rate": 5e-3}, "learning rate 0.005, not 0.001"),
        ({"directions": {"evil": "0000"}}, "another direction evil"),
    ],
)
def test_runs_that_are_not_alike_are_told_apart(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    runs = [Reference.load(each) for each in records(tmp_path, 3)]
    assert alike(runs, rule()).rank == 16
    other = Reference.load(record(tmp_path / "other", [0.1, 0.1], 9, **changes))
    with pytest.raises(WeightWatchError, match=rf"other is not a run like the others \({told}\)"):
        alike([*runs, other], rule())


def test_controls_count_only_where_the_metric_needs_them(tmp_path: Path) -> None:
    runs = [
        Reference.load(record(tmp_path / "a", [0.1])),
        Reference.load(record(tmp_path / "b", [0.1], 1, controls={"style": "0000"})),
    ]
    assert alike(runs, rule()).directions == {"evil": "3f2a"}
    with pytest.raises(WeightWatchError, match="other controls"):
        alike(runs, rule(metric="over_controls"))


def test_references_of_different_length_count_as_the_longest(tmp_path: Path) -> None:
    runs = [
        Reference.load(record(tmp_path / "a", [0.1], steps=100, every=20)),
        Reference.load(record(tmp_path / "b", [0.1], 1, steps=40, every=20)),
    ]
    assert (alike(runs, rule()).steps, alike(runs, rule()).every) == (100, 20)


def test_a_run_far_above_the_others_is_told(tmp_path: Path) -> None:
    ordinary = [(f"run-{n}", n / 100) for n in range(10)]
    assert far(ordinary) == []
    assert far([*ordinary, ("bad", 0.5), ("low", -0.5)]) == ["bad"]
    assert far([("a", 0.0), ("b", 9.0)]) == []  # of two nobody can tell
