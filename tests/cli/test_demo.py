"""``weightwatch demo`` as a user calls it; tests/demo has the runs themselves."""

from pathlib import Path

import pytest

from tests.support.commands import call, refused
from weightwatch.cli.exit_status import BAD_INPUT
from weightwatch.demo.run import MARKER


@pytest.mark.parametrize("arguments", [["--poison", "2"], ["--seed", "one"], ["--unknown"]])
def test_bad_arguments_exit_with_2(arguments: list[str]) -> None:
    assert call("demo", *arguments).exit_code == BAD_INPUT


@pytest.mark.parametrize("name", ["benign", "poisoned"])
def test_a_run_that_is_not_of_the_demo_is_refused_before_anything_is_deleted(tmp_path: Path, name: str) -> None:
    """A watched run of the user's own looks like one of the demo, but has no marker."""
    for run in ("benign", "poisoned"):
        (tmp_path / run / "weightwatch").mkdir(parents=True)
        (tmp_path / run / "weightwatch" / "readings.jsonl").write_text(f"of {run}")
    (tmp_path / {"benign": "poisoned", "poisoned": "benign"}[name] / MARKER).touch()
    refused(f"{name} exists and is not a run of the demo. Pass another --output", "demo", "--output", tmp_path)
    assert (tmp_path / name / "weightwatch" / "readings.jsonl").read_text() == f"of {name}"


def test_with_a_guard_the_folder_of_the_third_run_is_not_another_s_either(tmp_path: Path) -> None:
    (tmp_path / "guarded").mkdir()
    (tmp_path / "guarded" / "thesis.txt").write_text("mine")
    refused("guarded exists and is not a run of the demo", "demo", "--guard", "--output", tmp_path)
    assert (tmp_path / "guarded" / "thesis.txt").read_text() == "mine"
