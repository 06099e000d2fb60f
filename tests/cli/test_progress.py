"""Bars on the console that is passed; what libraries print goes to standard error."""

import io

import pytest
from rich.console import Console

from weightwatch.cli.progress import stages, transfers


def test_each_stage_has_a_bar_and_standard_output_stays_free(capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    with stages(Console(file=text, force_terminal=True, width=100)) as progress:
        progress("answers", 1, 3)
        progress("answers", 3, 3)
        progress("verdicts", 2, 4)
        print("a library's notice")
    last = text.getvalue().split("answers")[-1]
    assert "3/3" in last
    assert "verdicts" in last
    assert "2/4" in last
    assert "notice" not in capsys.readouterr().out


def test_the_bar_shows_bytes_done_and_in_total_and_disappears() -> None:
    screen = io.StringIO()
    bars = transfers(Console(file=screen, width=80, force_terminal=True))
    with bars:
        task = bars.add_task("reading", total=4_000_000)
        bars.advance(task, 1_000_000)
        bars.refresh()
        shown = screen.getvalue()
    assert "reading" in shown
    assert "1.0/4.0 MB" in shown
    assert screen.getvalue().endswith("\x1b[2K")  # the line is erased
