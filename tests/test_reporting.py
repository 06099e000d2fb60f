from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.models import lora, tiny_llama
from tests.support.runs import lines, steps
from tests.test_session import checked, session
from weightwatch.reading.reading import Reading
from weightwatch.report.base import Reporter, Run
from weightwatch.rules.alert import Alert


class Broken(Reporter):
    """Fails in one of its methods, and counts the calls of the others."""

    def __init__(self, fails_in: str) -> None:
        self.fails_in, self.calls = fails_in, 0

    def begin(self, run: Run) -> None:
        if self.fails_in == "begin":
            raise RuntimeError("no screen")

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        self.calls += 1
        if self.fails_in == "check":
            raise RuntimeError("no screen")


@pytest.mark.parametrize(("fails_in", "calls"), [("begin", 0), ("check", 3), ("nothing", 3)])
def test_a_reporter_that_fails_keeps_no_other_from_reporting(
    fails_in: str, calls: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken(fails_in)
    model, watched = lora(tiny_llama()), session(tmp_path, reporters=[broken])
    watched.begin(model, 0)
    checked(watched, model, 10, 1.0)
    checked(watched, model, 20, -1.0)
    assert broken.calls == calls
    assert steps(tmp_path) == [0, 10, 20]
    assert [line["state"] for line in lines(tmp_path, "alerts.jsonl")] == ["firing", "resolved"]
    assert caplog.text.count("no screen. Training continues.") == (fails_in != "nothing")
