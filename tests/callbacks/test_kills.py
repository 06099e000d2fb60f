"""Real trainings that are killed at random points: what goes on has the record of a run that was never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.models import low_rank, tiny_llama
from tests.support.runs import STRICT, trainer
from weightwatch import WeightWatchCallback

POINTS = 20
STEPS = 12

CAMPAIGN = """
import sys
from pathlib import Path
from tests.callbacks.test_kills import campaign
campaign(Path(sys.argv[1]))
"""


def newest(folder: Path) -> str | None:
    """Return the newest checkpoint that is complete: the trainer writes its state after all else."""
    found = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda file: int(file.parent.name[11:]))
    return str(found[-1].parent) if found else None


def train(folder: Path, resume: str | None) -> None:
    rules: list[dict[str, Any]] = [
        {"alert": "moved", "direction": "evil", "metric": "dose", "scope": "any_layer", "above": -1e9, "for": 5},
        {"alert": "flips", "direction": "evil", "metric": "cosine", "scope": {"modules": ["q_proj"]}, "above": 0.0},
    ]
    callback = WeightWatchCallback(low_rank(tiny_llama(), 5), config={**STRICT, "every": 1, "rules": rules})
    changes = {"save_strategy": "steps", "save_steps": 2, "max_steps": STEPS, "learning_rate": 3e-3}
    trainer(tiny_llama(), folder, callback, **changes).train(resume_from_checkpoint=resume)


def forked(folder: Path, delay: float | None = None) -> tuple[int, float]:
    """Train in a process of its own, killed after some seconds. Return its status, and how long it took."""
    begun = time.monotonic()
    child = os.fork()
    if not child:
        try:
            train(folder, newest(folder))
        except BaseException as error:
            print(f"{folder}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, time.monotonic() - begun


def record(folder: Path, name: str) -> list[dict[str, Any]]:
    text = (folder / "weightwatch" / name).read_text()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in text.splitlines()]


def campaign(folder: Path) -> None:
    """Kill a run at each point, and go on until it ends. It runs in a process that has no threads, so it can fork."""
    torch.set_num_threads(1)
    import_module("torch.utils.tensorboard")  # loaded once, for all processes

    status, whole = forked(folder / "whole")
    assert status == 0
    chance = random.Random(0)
    killed = 0
    for point in range(POINTS):
        status, _ = forked(folder / f"run-{point}", chance.uniform(0, whole))
        killed += status == -signal.SIGKILL
        done = newest(folder / f"run-{point}") == str(folder / f"run-{point}" / f"checkpoint-{STEPS}")
        if status and not done:  # a trainer that goes on from the last step takes one more
            status, _ = forked(folder / f"run-{point}")
            assert status == 0, point
        for name in ("readings.jsonl", "alerts.jsonl"):
            assert record(folder / f"run-{point}", name) == record(folder / "whole", name), (point, name)
        assert not (folder / f"run-{point}" / "weightwatch" / "errors.jsonl").exists()
    assert killed > POINTS // 2
    assert [line["step"] for line in record(folder / "whole", "readings.jsonl")] == list(range(STEPS + 1))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_at_any_point_goes_on_to_the_record_of_one_that_was_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CAMPAIGN, str(tmp_path)], capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
