from dataclasses import replace

import pytest
from rich.console import Console

from tests.rules.test_alert import ALERT
from tests.support.runs import reading, score
from weightwatch.reading.reading import Reading
from weightwatch.report.base import Outcome
from weightwatch.report.terminal import ClosingTable, number, profile, scanned
from weightwatch.rules.alert import Alert


def printed(readings: list[Reading], alerts: list[Alert] | None = None) -> str:
    peaks = {"evil": max((r["evil"].reach_cosine, r.step) for r in readings)}
    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        console.print(ClosingTable(Outcome(readings[-1], peaks, alerts or [])))
    return capture.get()


@pytest.mark.parametrize(("value", "text"), [(0.12345, "+0.123"), (-0.5, "-0.500"), (0.0, "+0.000"), (None, "–")])
def test_a_figure_is_signed_and_has_three_decimals(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_profile_draws_the_largest_share_full_and_negative_ones_blank() -> None:
    assert profile(dict(enumerate([score(0.8), score(0.4), score(0.0), score(-0.4)]))) == "█▄  "
    assert profile({}) == ""
    assert profile({0: score(0.0), 1: score(-1.0)}) == "  "


def test_the_profile_parts_the_stacks() -> None:
    layers = {0: score(0.8), 1: score(0.4), "encoder.block.0": score(-0.1), "encoder.block.1": score(0.8)}
    assert profile(layers) == "█▄│ █"


def test_the_table_says_where_each_direction_ended_and_peaked() -> None:
    text = printed([reading(0, 0.0, norm=0.0), reading(10, 0.4), reading(20, 0.25, norm=1.3, z=7.0)])
    assert "step 20, update norm 1.3" in text
    row = next(line for line in text.splitlines() if "evil" in line)
    for cell in ("+0.250", "+0.400 at 10", "+7.0", "none"):
        assert cell in row


def test_the_table_names_the_first_alert_of_a_direction() -> None:
    text = printed([reading(40, 0.4)], [replace(ALERT, state="resolved", step=30), ALERT, replace(ALERT, step=60)])
    assert "evil-drift at 40" in text


def test_the_table_of_a_scan_has_a_row_for_each_direction_and_names_a_step_once() -> None:
    both = replace(reading(10, 0.4), directions={"evil": reading(10, 0.4)["evil"], "style": reading(10, 0.1)["evil"]})
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(scanned([both, reading(20, 0.2)]))
    rows = [line.split()[:2] for line in capture.get().splitlines() if "+0." in line]
    assert rows == [["10", "evil"], ["style", "+0.100"], ["20", "evil"]]
