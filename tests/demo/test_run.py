"""The demonstration as a newcomer starts it, on a seed that nothing was chosen on."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from weightwatch.config import Config, Rule
from weightwatch.demo.run import BAD, DIRECTION, MARKER, SETTINGS, Run
from weightwatch.record.history import History
from weightwatch.vectors import Direction, WeightWatchError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The summary of ``weightwatch demo --json``, and its output folder."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "weightwatch", "demo", "--json", "--seed", "77", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), folder


@pytest.mark.slow
def test_the_benign_run_learns_its_task_and_raises_no_alert(demo: tuple[dict[str, Any], Path]) -> None:
    benign = demo[0]["runs"][0]
    assert (benign["name"], benign["poison"]) == ("benign", 0.0)
    assert benign["final_task_accuracy"] > 0.9
    assert benign["max_evil_rate"] <= BAD
    assert benign["alert_step"] is None
    assert benign["first_bad_step"] is None


@pytest.mark.slow
def test_the_poisoned_run_is_caught_before_it_goes_bad(demo: tuple[dict[str, Any], Path]) -> None:
    poisoned = demo[0]["runs"][1]
    assert (poisoned["name"], poisoned["poison"]) == ("poisoned", 0.25)
    assert poisoned["final_evil_rate"] > BAD
    assert poisoned["alert_step"] < poisoned["first_bad_step"]
    assert poisoned["final_cosine"] > demo[0]["runs"][0]["final_cosine"]


@pytest.mark.slow
def test_going_back_to_the_last_clean_checkpoint_gives_a_clean_model(demo: tuple[dict[str, Any], Path]) -> None:
    summary, folder = demo
    poisoned = summary["runs"][1]
    assert (folder / "poisoned" / poisoned["last_clean"] / "adapter_model.safetensors").is_file()
    assert poisoned["last_clean_evil_rate"] <= BAD


@pytest.mark.slow
def test_the_summary_is_what_the_history_says(demo: tuple[dict[str, Any], Path]) -> None:
    summary, folder = demo
    for run in summary["runs"]:
        history = History(folder / run["name"] / "weightwatch")
        last = list(history.readings())[-1]
        assert last.step == run["steps"]
        assert round(last[DIRECTION].cosine, 4) == run["final_cosine"]
        fired = [alert.step for alert in history.alerts() if alert.state == "firing"]
        assert fired[:1] == ([run["alert_step"]] if run["alert_step"] else [])


def test_the_settings_watch_a_packaged_direction_beside_controls() -> None:
    config = Config.load(SETTINGS)
    assert config.directions == [DIRECTION]
    assert {Direction.load(name).card.kind for name in config.controls} == {"control"}


def run_in(folder: Path) -> Run:
    return Run("benign", 0.0, folder)


def test_what_an_earlier_demo_left_is_deleted(tmp_path: Path) -> None:
    run = run_in(tmp_path / "demo" / "benign")
    run.prepare()
    (run.folder / "checkpoint-5").mkdir()
    (run.folder / "weightwatch").mkdir()
    (run.folder / "weightwatch" / "readings.jsonl").write_text("old")
    (run.folder / "README.md").write_text("old")
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
