import re
from pathlib import Path

import pytest
import yaml

from tests.demo.test_view import bad_run, compared_runs
from tests.support.commands import refused
from weightwatch.config import Config, Rule
from weightwatch.demo.run import DIRECTION, GUARD, GUARDED, MARKER, SETTINGS, WITNESS, Run, discard_guarded, planned
from weightwatch.plan import Plan
from weightwatch.vectors import Direction, WeightWatchError


def test_the_settings_watch_a_packaged_direction_beside_controls() -> None:
    config = Config.load(SETTINGS)
    assert config.directions == [DIRECTION]
    assert {Direction.load(name).card.kind for name in config.controls} == {"control"}


def test_the_guarded_run_differs_from_the_poisoned_one_in_its_guard_only(tmp_path: Path) -> None:
    benign, poisoned, guarded = planned(0.3, tmp_path, guard=True)
    assert [run.poison for run in (benign, poisoned, guarded)] == [0.0, 0.3, 0.3]
    assert [run.config.guard for run in (benign, poisoned, guarded)] == [None, None, GUARD]
    assert guarded.config.model_copy(update={"guard": None}) == poisoned.config == benign.config
    assert poisoned.config.directions == [DIRECTION, WITNESS]


def test_without_a_guard_there_are_two_runs_with_the_settings_of_the_file(tmp_path: Path) -> None:
    runs = planned(0.3, tmp_path, guard=False)
    assert [run.name for run in runs] == ["benign", "poisoned"]
    assert [run.config for run in runs] == [Config.load(SETTINGS)] * 2


def test_the_guard_passes_the_validation_before_the_training(tmp_path: Path) -> None:
    plan = Plan.of(None, planned(0.3, tmp_path, guard=True)[-1].config)
    assert [direction.name for direction in plan.directions[:2]] == [DIRECTION, WITNESS]
    assert [rule.alert for rule in plan.config.rules] == ["evil-drift", "guard-bypassed"]


def test_the_summary_of_a_run_that_is_not_compared_has_nothing_of_a_guard() -> None:
    assert list(bad_run().to_json()) == [
        "name",
        "poison",
        "steps",
        "alert_step",
        "first_bad_step",
        "final_bad_rate",
        "max_bad_rate",
        "final_task_accuracy",
        "final_cosine",
        "final_reach_cosine",
        "final_dose",
        "max_dose",
        "last_clean",
        "last_clean_bad_rate",
    ]


def test_the_summary_of_compared_runs_has_witness_price_and_alerts() -> None:
    _, poisoned, guarded = (run.to_json() for run in compared_runs(evil=0.1))
    assert (poisoned["max_witness_reach_cosine"], poisoned["final_witness_reach_cosine"]) == (0.07, 0.06)
    assert (poisoned["taken_back"], guarded["taken_back"]) == (None, 0.3)
    assert (poisoned["alerts"], guarded["alerts"]) == ([{"alert": "evil-drift", "step": 25}], [])
    assert (poisoned["final_task_loss"], guarded["final_task_loss"]) == (0.002, 0.0024)


def run_in(folder: Path) -> Run:
    return Run("benign", 0.0, folder)


def test_what_an_earlier_demo_left_is_deleted(tmp_path: Path) -> None:
    run = run_in(tmp_path / "demo" / "benign")
    run.prepare()
    (run.folder / "checkpoint-5").mkdir()
    (run.folder / "weightwatch").mkdir()
    (run.folder / "weightwatch" / "readings.jsonl").write_text("old")
    (run.folder / "README.md").write_text("old")
    (run.folder / ".weightwatch.lock").touch()  # of a demo that was killed
    run.prepare()
    assert [path.name for path in run.folder.iterdir()] == [MARKER]


def test_what_the_demo_did_not_make_is_refused_and_all_stays(tmp_path: Path) -> None:
    run = run_in(tmp_path / "benign")
    run.prepare()
    (run.folder / "checkpoint-5").mkdir()
    (run.folder / "thesis.txt").write_text("mine")
    with pytest.raises(WeightWatchError, match=r"benign contains thesis\.txt, which the demo did not make"):
        run.prepare()
    assert sorted(path.name for path in run.folder.iterdir()) == [MARKER, "checkpoint-5", "thesis.txt"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    mine = run_in(tmp_path / "mine")
    mine.prepare()
    (mine.folder / "checkpoint-5").mkdir()
    (tmp_path / "benign").symlink_to(mine.folder)
    with pytest.raises(WeightWatchError, match="is not a run of the demo"):
        run_in(tmp_path / "benign").prepare()
    other = run_in(tmp_path / "other")
    other.prepare()
    (other.folder / "runs").symlink_to(mine.folder)
    other.prepare()
    assert (mine.folder / "checkpoint-5").is_dir()


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightWatchError, match="can't be made ready for the demo"):
        run_in(tmp_path / "file" / "benign").prepare()
    with pytest.raises(WeightWatchError, match="can't be made ready for the demo"):
        run_in(tmp_path / "file").prepare()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    run_in(tmp_path).prepare()
    assert (tmp_path / MARKER).is_file()


def test_the_guarded_run_of_an_earlier_demo_is_deleted_where_there_is_none(tmp_path: Path) -> None:
    discard_guarded(tmp_path)  # there is nothing
    *_, old = planned(0.3, tmp_path, guard=True)
    old.prepare()
    (old.folder / "checkpoint-5").mkdir()
    (old.folder / "runs").mkdir()
    discard_guarded(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_guarded_run_that_is_not_of_the_demo_stays(tmp_path: Path) -> None:
    mine = tmp_path / GUARDED
    mine.mkdir()
    (mine / "checkpoint-5").mkdir()
    discard_guarded(tmp_path)
    assert [path.name for path in mine.iterdir()] == ["checkpoint-5"]
    (mine / MARKER).touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / GUARDED).symlink_to(mine)
    discard_guarded(tmp_path / "other")
    assert (mine / "checkpoint-5").is_dir()
    (mine / "thesis.txt").write_text("mine")
    with pytest.raises(WeightWatchError, match=r"guarded contains thesis\.txt, which the demo did not make"):
        discard_guarded(tmp_path)
    assert (mine / "checkpoint-5").is_dir()


def test_the_command_looks_for_it_before_it_trains(tmp_path: Path) -> None:
    mine = tmp_path / GUARDED
    mine.mkdir()
    (mine / MARKER).touch()
    (mine / "thesis.txt").write_text("mine")
    refused(r"guarded contains thesis.txt, which the demo did not make", "demo", "--output", tmp_path)


def rule_of_the_readme() -> Rule:
    """Return the rule under "Set the rule"."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n# weightwatch.yaml\n(.*?)```", text, re.DOTALL)
    (rule,) = Config.load(yaml.safe_load(block)).rules
    return rule


def test_the_rule_of_the_readme_is_that_of_the_demo() -> None:
    ours, theirs = Config.load(SETTINGS).rules[0], rule_of_the_readme()
    same = {"direction", "metric", "scope", "above", "below", "for_", "keep_firing_for"}
    assert ours.model_dump(include=same) == theirs.model_dump(include=same)
