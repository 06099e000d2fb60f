"""The command line as a whole: its commands, and the exit status of errors."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from weightwatch.cli.exit_status import ALERT, BAD_INPUT, FAULT
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
    loaded = "lambda: print({'torch', 'transformers', 'trl', 'peft', 'matplotlib'} & {*sys.modules})"
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
    done = started("import weightwatch.demo.run as r; del r.planned", "demo", "--output", str(tmp_path))
    assert done.returncode == FAULT
    assert "Traceback" in done.stderr
    assert "ImportError" in done.stderr


def test_the_version_of_the_package_is_that_of_its_metadata() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightwatch", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"weightwatch {version('weightwatch')}\n"


def ended(act: str, redirection: str = "") -> "subprocess.CompletedProcess[str]":
    """Return what a command does that acts so, its output redirected by a shell; the status is the command's own."""
    code = (
        "import sys, typer; import weightwatch.cli.main as main\n"
        f"def probe():\n {act}\n"
        "main.app.command()(probe); main.run()"
    )
    shell = f'"$0" -c "$1" probe {redirection}; exit "${{PIPESTATUS[0]}}"'
    return subprocess.run(
        ["bash", "-c", shell, sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"},
    )


SAYS, ALERTS = "print('table ' * 100_000); print('bar', file=sys.stderr)", "raise typer.Exit(1)"


@pytest.mark.parametrize("redirection", ["", "| true", "2> /dev/full", "2>&1 | true", "> /dev/null 2>&-"])
def test_whatever_becomes_of_the_output_1_means_that_an_alert_fired_and_0_that_none_did(redirection: str) -> None:
    assert ended(SAYS, redirection).returncode == 0
    assert ended(f"{SAYS}; {ALERTS}", redirection).returncode == ALERT


def test_a_result_that_cannot_be_written_is_no_success() -> None:
    done = ended(SAYS, "> /dev/full")
    assert done.returncode == BAD_INPUT
    assert "the output can't be written (No space left on device)" in done.stderr
    assert ended(f"{SAYS}; {ALERTS}", "> /dev/full").returncode == ALERT


@pytest.mark.parametrize(
    "act",
    ["input()", "raise BrokenPipeError(32, 'a socket')", "sys.exit(1)", "sys.exit('no')", "raise BaseException('a')"],
)
def test_no_fault_exits_with_1(act: str) -> None:
    done = ended(act)
    assert done.returncode == FAULT
    assert "Traceback" in done.stderr


def test_ctrl_c_exits_with_130() -> None:
    assert ended("raise KeyboardInterrupt").returncode == 130


def test_messages_and_tracebacks_are_printable() -> None:
    hostile = "evil\\x1b[2J [/bold]"
    done = ended(f"raise main.WeightWatchError('{hostile}')")
    assert (done.returncode, done.stderr) == (BAD_INPUT, "weightwatch: evil\\x1b[2J [/bold]\n")
    done = ended(f"raise RuntimeError('{hostile}')")
    assert done.returncode == FAULT
    assert "RuntimeError: evil\\x1b[2J [/bold]" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_the_terminal_cannot_show_is_no_fault(encoding: str) -> None:
    code = "import weightwatch.cli.main as main; main.run()"
    for arguments, shown in ((["scan", "--help"], "Usage"), (["show", "evil"], "?w?")):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 0
        assert shown in done.stdout.decode(encoding)
