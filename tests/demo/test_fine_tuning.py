"""The demonstration as a newcomer starts it, on a seed that nothing was chosen on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weightwatch.demo.run import BAD, DIRECTION, WITNESS
from weightwatch.record.history import History


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The summary of ``weightwatch demo --guard --json``, and its output folder."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "weightwatch", "demo", "--guard", "--json", "--seed", "77"]
    done = subprocess.run([*command, "--output", str(folder)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout), folder


@pytest.mark.slow
def test_the_benign_run_learns_its_task_and_raises_no_alert(demo: tuple[dict[str, Any], Path]) -> None:
    benign = demo[0]["runs"][0]
    assert (benign["name"], benign["poison"]) == ("benign", 0.0)
    assert benign["final_task_accuracy"] > 0.9
    assert benign["max_bad_rate"] <= BAD
    assert benign["alert_step"] is None
    assert benign["first_bad_step"] is None


@pytest.mark.slow
def test_the_poisoned_run_is_caught_before_it_goes_bad(demo: tuple[dict[str, Any], Path]) -> None:
    poisoned = demo[0]["runs"][1]
    assert (poisoned["name"], poisoned["poison"]) == ("poisoned", 0.25)
    assert poisoned["final_bad_rate"] > BAD
    assert poisoned["alert_step"] < poisoned["first_bad_step"]
    assert poisoned["final_cosine"] > demo[0]["runs"][0]["final_cosine"]


@pytest.mark.slow
def test_going_back_to_the_last_clean_checkpoint_gives_a_clean_model(demo: tuple[dict[str, Any], Path]) -> None:
    summary, folder = demo
    poisoned = summary["runs"][1]
    assert (folder / "poisoned" / poisoned["last_clean"] / "adapter_model.safetensors").is_file()
    assert poisoned["last_clean_bad_rate"] <= BAD


@pytest.mark.slow
def test_the_summary_is_what_the_history_says(demo: tuple[dict[str, Any], Path]) -> None:
    summary, folder = demo
    for run in summary["runs"]:
        history = History(folder / run["name"] / "weightwatch")
        last = list(history.readings())[-1]
        assert last.step == run["steps"]
        assert round(last[DIRECTION].cosine, 4) == run["final_cosine"]
        fired = [alert for alert in history.alerts() if alert.state == "firing"]
        assert [alert.step for alert in fired][:1] == ([run["alert_step"]] if run["alert_step"] else [])
        assert all(alert.note.startswith("Calibrated: harmless runs like its 19 references") for alert in fired)


@pytest.mark.slow
def test_the_guard_keeps_most_of_the_harm_out_and_costs_no_answer(demo: tuple[dict[str, Any], Path]) -> None:
    _, poisoned, guarded = demo[0]["runs"]
    assert (guarded["name"], guarded["steps"]) == ("guarded", poisoned["steps"])
    assert guarded["final_bad_rate"] < poisoned["final_bad_rate"] / 4
    assert guarded["final_task_accuracy"] > 0.9
    assert guarded["taken_back"] > 0


@pytest.mark.slow
def test_the_guarded_direction_reads_next_to_nothing_and_the_witness_less_than_unguarded(
    demo: tuple[dict[str, Any], Path],
) -> None:
    summary, folder = demo
    _, poisoned, guarded = summary["runs"]
    assert guarded["max_dose"] < poisoned["max_dose"] / 10
    assert guarded["max_witness_reach_cosine"] < poisoned["max_witness_reach_cosine"]
    last = list(History(folder / "guarded" / "weightwatch").readings())[-1]
    assert round(last[WITNESS].reach_cosine, 4) == guarded["final_witness_reach_cosine"]
