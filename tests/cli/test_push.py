"""``weightwatch push`` as a user calls it, with a Hub on this machine."""

import subprocess
import sys
from pathlib import Path

from tests.support.hub import TOKEN, serving
from tests.support.models import low_rank, tiny_llama
from tests.vectors.test_hub import Machine
from weightwatch.cli.exit_status import BAD_INPUT
from weightwatch.vectors import Direction


def test_a_direction_is_pushed_privately_and_loads_by_its_id(tmp_path: Path) -> None:
    evil = low_rank(tiny_llama(), 1).save(tmp_path / "evil")
    with serving() as hub:
        machine = Machine(tmp_path / "home", hub.address)
        environment = {**machine.environment, "HF_TOKEN": TOKEN}

        def weightwatch(*arguments: object) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "weightwatch", *map(str, arguments)]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

        done = weightwatch("push", evil, "org/evil")
        assert done.returncode == 0, done.stderr
        assert f"{hub.address}/org/evil/commit/" in done.stdout
        assert hub.repositories["org/evil"].private
        tiny_llama().save_pretrained(tmp_path / "base")
        done = weightwatch("steer", tmp_path / "base", "org/evil=0.5", "--adapter", "--output", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert Direction.load(tmp_path / "out").norm == Direction.load(evil).norm / 2
        done = weightwatch("push", evil, "evil")
        assert done.returncode == BAD_INPUT
        assert "'evil' is not a Hub id" in done.stderr
