import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weightwatch.cli.main import BAD_INPUT, app


def test_help_names_the_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in ("demo", "scan", "build", "show", "steer", "compare", "push"):
        assert command in result.stdout


@pytest.mark.parametrize("arguments", [["--poison", "2"], ["--seed", "one"], ["--unknown"]])
def test_bad_arguments_exit_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["demo", *arguments]).exit_code == BAD_INPUT


def test_an_error_of_the_user_is_one_line_and_exits_with_2(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from weightwatch.cli.main import run; "
        f"import weightwatch.demo.run as demo; demo.SETTINGS = pathlib.Path({str(tmp_path / 'none.yaml')!r}); "
        f"sys.argv = ['weightwatch', 'demo', '--output', {str(tmp_path)!r}]; run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == BAD_INPUT
    assert "No config at" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_of_the_package_is_that_of_its_metadata() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightwatch", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"weightwatch {version('weightwatch')}\n"
