"""Names are text on the console, and what is printed beside a progress bar has a line of its own."""

import io
import sys

import pytest
from rich.table import Table
from tqdm.auto import tqdm

from weightwatch.report.console import above_bars, console


@pytest.mark.parametrize("name", ["[/evil]", "[bold]evil[/bold]", ":skull:", "[link=http://x]evil[/link]"])
def test_markup_in_a_name_is_text(name: str) -> None:
    screen = io.StringIO()
    table = Table(name, title=name)
    table.add_row(name)
    console(file=screen, force_terminal=True).print(name, table)
    assert screen.getvalue().count(name) == 4


def test_what_is_printed_beside_a_bar_begins_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=10, file=sys.stderr, ncols=40, mininterval=0) as bar:
        bar.update(3)
        with above_bars():
            print("alert", file=sys.stderr)
        bar.update(1)
    before, after = capsys.readouterr().err.split("alert\n")
    assert before.split("\r")[-1] == ""  # the cursor is at the start of the line
    assert before.split("\r")[-2].isspace()  # and the bar is wiped
    assert "30%" in after
    assert "40%" in after
