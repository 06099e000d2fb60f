"""The command line as a whole: its commands, and the exit status of errors."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

from weightwatch.cli.exit_status import BAD_INPUT, FAULT
from weightwatch.cli.main import app


def started(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a fresh interpreter, after some code."""
    code = f"{code}; import weightwatch.cli.main as main; main.run()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_help_lists_the_commands_in_the_order_of_use() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    words = [line.strip("│ ").split(" ")[0] for line in result.stdout.splitlines()]
    commands = ["demo", "build", "show", "compare", "scan", "steer", "push"]
    assert [word for word in words if word in commands] == commands


def test_help_loads_no_framework() -> None:
    loaded = "lambda: print({'transformers', 'trl', 'peft', 'matplotlib'} & {*sys.modules})"
    done = started(f"import atexit, sys; atexit.register({loaded})", "--help")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "set()"


def test_an_error_of_the_user_is_one_line_and_exits_with_2(tmp_path: Path) -> None:
    code = f"import weightwatch.demo.run as r, pathlib; r.SETTINGS = pathlib.Path({str(tmp_path / 'none.yaml')!r})"
    done = started(code, "demo", "--output", str(tmp_path))
    assert done.returncode == BAD_INPUT
    assert "No config at" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unexpected_exception_exits_with_3_and_its_traceback(tmp_path: Path) -> None:
    done = started("import weightwatch.demo.run as r; del r.Run", "demo", "--output", str(tmp_path))
    assert done.returncode == FAULT
    assert "Traceback" in done.stderr
    assert "ImportError" in done.stderr


def test_the_version_of_the_package_is_that_of_its_metadata() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightwatch", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"weightwatch {version('weightwatch')}\n"
