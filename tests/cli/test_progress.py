"""Bars on the console that is passed; what libraries print goes to standard error."""

import io

import pytest
from rich.console import Console

from weightwatch.cli.pace import Pace
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


def lines(*calls: tuple[float, str, int, int]) -> list[str]:
    """Return what is printed where there is no terminal; the first number of a call is its time."""
    text, times = io.StringIO(), iter([time for time, *_ in calls])
    with stages(Console(file=text, width=60), Pace(lambda: next(times))) as progress:
        for _, *call in calls:
            progress(*call)
    return text.getvalue().splitlines()


def test_without_a_terminal_a_stage_is_a_line_at_each_tenth_at_most() -> None:
    calls = [(60.0 * done, "answers", done, 100) for done in range(101)]
    shown = lines(*calls)
    assert shown[:2] == ["answers: 1/100, about 99 min left", "answers: 11/100, about 89 min left"]
    assert shown[-1] == "answers: 100/100 in 100 min"
    assert len(shown) == 11


def test_a_quick_stage_is_one_line() -> None:
    calls = [(0.01 * done, f"seed-1 {side}", done, 100) for side in ("positive", "negative") for done in range(101)]
    assert lines(*calls) == ["seed-1 positive: 100/100 in 1 s", "seed-1 negative: 100/100 in 1 s"]


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
