import os
import pty
import subprocess
import sys
import termios
import textwrap
from itertools import pairwise
from pathlib import Path

import pyte
import pytest

from tests.support.models import low_rank, tiny_llama
from tests.support.runs import reading
from weightwatch.config import Config
from weightwatch.report.base import Outcome, Run
from weightwatch.report.console import bars
from weightwatch.report.live import Live

TRAINING = """
    import sys
    from pathlib import Path
    from transformers.utils import logging
    from tests.support.models import lora, low_rank, tiny_llama
    from tests.support.runs import STRICT, trainer
    from weightwatch import WeightWatchCallback, watch

    output = Path(sys.argv[1])
    rule = {"alert": "moved", "direction": "evil", "metric": "dose", "scope": "any_layer", "above": -1e9, "actions": []}
    config = {**STRICT, "summary": True, "rules": [rule]}
    evil = [low_rank(tiny_llama(), 5)]
    bars = {"disable_tqdm": False, "evaluated": True, "eval_strategy": "steps", "eval_steps": 3}
    given = WeightWatchCallback(evil, config=config)
    trainer(lora(tiny_llama()), output / "given", given, **bars).train()
    print("BETWEEN", flush=True)
    task = trainer(lora(tiny_llama()), output / "added", **bars)
    watch(task, evil, config=config)
    task.train()
    print("AFTER", flush=True)
"""


def shown_on_a_terminal(script: str, folder: Path, columns: int) -> bytes:
    """Return what a script writes to a terminal of 60 lines."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (60, columns))
    settings = {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(folder)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **settings})
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # all have closed the other end
        pass
    os.close(ours)
    assert process.wait() == 0, written.decode()
    return written


def test_on_a_terminal_the_line_is_below_the_trainers_bar_and_is_gone_at_the_end(tmp_path: Path) -> None:
    written = shown_on_a_terminal(TRAINING, tmp_path, 140)
    screen = pyte.Screen(140, 400)
    stream = pyte.ByteStream(screen)
    together = set()
    up = b"\x1b[A"  # tqdm writes a line below, and then goes up again: the screen is whole
    for part in written.split(up):
        stream.feed(part)
        rows = [row.rstrip() for row in screen.display]
        for bar, line in pairwise(rows):
            if "/8 [" in bar and line.startswith("step "):
                together.add(line.split("  ")[0])
                assert line.split("  ")[1] == "ALERT moved"
                assert line.split("  ")[2].startswith("evil ")
        stream.feed(up)
    assert together >= {"step 2", "step 4", "step 6"}
    end = [row.rstrip() for row in screen.display if row.strip()]
    assert [row for row in end if row.startswith("step ")] == []
    assert sum(row.startswith("100%") and "| 8/8 [" in row for row in end) == 2
    assert sum(row.startswith("{'loss'") and row.endswith("}") for row in end) == 8
    assert sum(row.startswith("weightwatch: step 8, update norm") for row in end) == 2
    assert [row for row in end if "BETWEEN" in row or "AFTER" in row] == ["BETWEEN", "AFTER"]


def shown(values: list[tuple[int, float]], firing: dict[int, bool] | None = None, *names: str) -> None:
    live = Live()
    live.begin(Run([low_rank(tiny_llama(), 1)], Config(), 0))
    for step, value in values:
        live.check(reading(step, value), [], {"drift": (firing or {}).get(step, False)})
    live.end(Outcome(reading(values[-1][0], 0.0), {}, []))


def test_without_a_terminal_a_line_is_printed_where_there_is_news(capsys: pytest.CaptureFixture[str]) -> None:
    shown([(0, 0.0), (2, 0.001), (4, 0.02), (6, 0.025), (8, 0.025), (10, 0.3)], {8: True, 10: True})
    assert capsys.readouterr().out.splitlines() == [
        "weightwatch: step 4: reach cos. evil +0.020",
        "weightwatch: step 8: reach cos. evil +0.025; firing: drift",
        "weightwatch: step 10: reach cos. evil +0.300; firing: drift",
    ]
    assert bars() == 0


def test_a_hostile_name_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    live = Live()
    live.begin(Run([low_rank(tiny_llama(), 1)], Config(), 0))
    live.check(reading(2, 0.5), [], {"\x1b[2Jdrift": True})
    assert "\x1b" not in capsys.readouterr().out
