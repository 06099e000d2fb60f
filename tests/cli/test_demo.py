"""``weightwatch demo`` as a user calls it; tests/demo has the runs themselves."""

from pathlib import Path

import pytest

from tests.support.commands import call, refused
from weightwatch.cli.exit_status import BAD_INPUT


@pytest.mark.parametrize("arguments", [["--poison", "2"], ["--seed", "one"], ["--unknown"]])
def test_bad_arguments_exit_with_2(arguments: list[str]) -> None:
    assert call("demo", *arguments).exit_code == BAD_INPUT


def test_a_folder_that_is_not_a_run_of_the_demo_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "thesis.txt").write_text("mine")
    refused("is not a run of the demo. Pass another --output", "demo", "--output", tmp_path)
    assert (tmp_path / "benign" / "thesis.txt").read_text() == "mine"
