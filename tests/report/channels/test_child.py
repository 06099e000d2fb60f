import os
import sys
from pathlib import Path

import anyio
import pytest

from weightwatch.report.channels import child
from weightwatch.report.channels.base import Undelivered


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_program_gets_its_input_and_its_environment(tmp_path: Path) -> None:
    code = "import os, sys; open(os.environ['OUT'], 'w').write(sys.stdin.read())"
    anyio.run(child.run, python(code), b"given", {"OUT": str(tmp_path / "out")})
    assert (tmp_path / "out").read_text() == "given"


def test_a_program_need_not_read_and_its_output_is_nobodys() -> None:
    anyio.run(child.run, python("print('x' * 10**6)"), b"x" * 10**6, {})


def test_a_status_and_a_program_that_is_no_program_are_told(tmp_path: Path) -> None:
    with pytest.raises(Undelivered, match="exit status 3"):
        anyio.run(child.run, python("raise SystemExit(3)"), b"", {})
    with pytest.raises(Undelivered, match="can't be started"):
        anyio.run(child.run, [str(tmp_path)], b"", {})


def test_a_program_that_takes_too_long_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    """A pipe ends when all that write to it are gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    grandchild = f"import time; pipe = open({str(pipe)!r}, 'wb', 0); pipe.write(b'x'); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child.run, python(code), b"", {})
            await anyio.wait_readable(end)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    os.set_blocking(end, True)
    assert os.read(end, 9) == b"x"
    assert os.read(end, 9) == b""
    os.close(end)
