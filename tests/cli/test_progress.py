from io import StringIO

from rich.console import Console

from weightwatch.cli.progress import transfers


def test_the_bar_shows_bytes_done_and_in_total_and_disappears() -> None:
    screen = StringIO()
    bars = transfers(Console(file=screen, width=80, force_terminal=True))
    with bars:
        task = bars.add_task("reading", total=4_000_000)
        bars.advance(task, 1_000_000)
        bars.refresh()
        shown = screen.getvalue()
    assert "reading" in shown
    assert "1.0/4.0 MB" in shown
    assert screen.getvalue().endswith("\x1b[2K")  # the line is erased
