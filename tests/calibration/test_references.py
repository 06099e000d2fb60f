import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.rules.test_engine import rule
from tests.support.references import record, records
from weightwatch import WeightWatchError
from weightwatch.calibration.references import Reference, alike, far
from weightwatch.rules.manager import RuleManager
from weightwatch.setup import SETUP


def test_a_run_is_found_by_its_output_folder_and_by_its_record(tmp_path: Path) -> None:
    home = record(tmp_path / "run", [0.1, 0.2])
    outer, inner = Reference.load(home), Reference.load(home / "weightwatch")
    assert [each.step for each in outer.readings] == [0, 10, 20]
    assert outer.unfinished == ""
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


def test_references_of_different_length_count_as_the_shortest_and_the_least_checked(tmp_path: Path) -> None:
    """A longer run, and one with more checks, has a larger score: its threshold holds for shorter ones."""
    runs = [
        Reference.load(record(tmp_path / "a", [0.1] * 10, every=10, saves=15)),
        Reference.load(record(tmp_path / "b", [0.1] * 4, 1, every=20)),
    ]
    found = alike(runs, rule())
    assert (found.steps, found.every, found.spacing) == (40, 20, 20)
    assert found == alike(runs[::-1], rule())


def test_an_accepted_run_that_has_not_finished_counts_as_a_run_of_its_steps(tmp_path: Path) -> None:
    whole = Reference.load(record(tmp_path / "a", [0.1] * 4))
    died = Reference.load(record(tmp_path / "b", [0.1] * 2, 1, steps=40))
    assert died.unfinished == "its last check is at step 20 of 40"
    assert alike([whole, died], rule()).steps == 20


def test_the_learning_rates_of_all_references_are_compared_whatever_their_order(tmp_path: Path) -> None:
    rates = (1.4e-3, 1e-3, 1e-3)
    runs = [Reference.load(record(tmp_path / f"{n}", [0.1], n, learning_rate=rate)) for n, rate in enumerate(rates)]
    assert [alike(several, rule()).learning_rate for several in (runs, runs[::-1])] == [1e-3, 1e-3]
    far_off = [*runs, Reference.load(record(tmp_path / "far", [0.1], 5, learning_rate=2e-3))]
    for several in (far_off, far_off[::-1]):
        with pytest.raises(
            WeightWatchError, match=r"far is not a run like the others \(learning rate 0.002, not 0.001"
        ):
            alike(several, rule())


def test_a_run_that_goes_on_or_has_gaps_or_broken_weights_is_told(tmp_path: Path) -> None:
    home = record(tmp_path / "live", [0.1] * 4)
    with FileLock(home / ".weightwatch.lock"):
        assert Reference.load(home).unfinished == "it still goes on"
    assert Reference.load(home).unfinished == ""
    file = home / "weightwatch" / "readings.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for kept, told in (
        ([0, 2, 3, 4], "it has no check between the steps 0 and 20"),
        ([0, 1, 2, 4], "it has no check between the steps 20 and 40"),
        ([2, 3, 4], "it has no check between the steps 0 and 20"),
    ):
        file.write_text("".join(lines[line] for line in kept))
        assert Reference.load(home).unfinished == told
    broken = json.loads(lines[3]) | {"left_out": {"a.weight": "it has NaN or infinite values"}}
    file.write_text("".join([*lines[:3], json.dumps(broken) + "\n", lines[4]]))
    assert Reference.load(home).unfinished == "some of its weights are NaN or infinite at step 30"


def test_a_line_that_a_killed_run_left_unfinished_is_not_read(tmp_path: Path) -> None:
    home = record(tmp_path / "killed", [0.1] * 4)
    file = home / "weightwatch" / "readings.jsonl"
    file.write_text(file.read_text()[:-20])
    assert [each.step for each in Reference.load(home).readings] == [0, 10, 20, 30]


def test_a_check_where_nothing_has_moved_interrupts_the_condition_as_in_the_engine(tmp_path: Path) -> None:
    home = record(tmp_path / "still", [0.3, 0.5, 0.4, 0.1])
    file = home / "weightwatch" / "readings.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[2]["update_norm"] = 0.0
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reference = Reference.load(home)
    assert reference.score(rule(**{"for": 2})) == 0.1
    for above, fires in ((0.1 - 1e-6, True), (0.1, False)):
        manager = RuleManager([rule(above=above, **{"for": 2})], lambda _: True)
        manager.replay(reference.readings)
        assert bool(manager.alerts) == fires


def test_a_first_check_that_has_moved_counts_as_in_the_engine(tmp_path: Path) -> None:
    home = record(tmp_path / "moved", [0.1])
    file = home / "weightwatch" / "readings.jsonl"
    first, last = (json.loads(line) for line in file.read_text().splitlines())
    first["update_norm"], first["directions"]["evil"]["reach_cosine"] = 1.0, 0.4
    file.write_text("".join(json.dumps(line) + "\n" for line in (first, last)))
    assert Reference.load(home).score(rule()) == 0.4


def test_a_record_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"can't be read \(File name too long"):
        Reference.load(tmp_path / ("x" * 300))


def test_a_run_far_above_the_others_is_told(tmp_path: Path) -> None:
    ordinary = [(f"run-{n}", n / 100) for n in range(10)]
    assert far(ordinary) == []
    assert far([*ordinary, ("bad", 0.5), ("low", -0.5)]) == ["bad"]
    assert far([("a", 0.0), ("b", 9.0)]) == []  # of two nobody can tell
