from dataclasses import replace
from pathlib import Path

from rich.console import Console, RenderableType

from tests.rules.test_alert import ALERT as EXAMPLE
from weightwatch.demo.run import Behaviour, Point, Run
from weightwatch.demo.view import live, table, verdict

ALERT = replace(EXAMPLE, step=25, since=20, last_clean="checkpoint-20")


def point(step: int, evil: float, firing: bool = False) -> Point:
    return Point(step, 1.5, 0.01, 0.02, 0.03, 1.0, Behaviour(evil, 0.75), firing)


def text_of(what: RenderableType, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def bad_run() -> Run:
    points = [point(20, 0.0), point(25, 0.02, firing=True), point(30, 0.03, firing=True), point(35, 0.4, firing=True)]
    return Run("poisoned", 0.25, Path("out"), points, [ALERT], Behaviour(0.0, 0.5))


def test_the_table_fits_80_columns_and_shows_every_twentieth_step_the_alert_and_the_harm() -> None:
    text = text_of(table(bad_run()))
    assert "…" not in text
    assert "25% of its data harmful in one domain" in text
    assert [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0].isdigit()] == [
        "20",
        "25",
        "35",
    ]


def test_the_alert_stands_in_the_row_of_its_step() -> None:
    rows = text_of(table(bad_run())).splitlines()
    assert next(row for row in rows if "ALERT evil-drift" in row).split()[0] == "25"
    assert next(row for row in rows if row.rstrip().endswith("firing")).split()[0] == "35"


def test_the_verdict_says_that_the_alert_came_before_the_harm_and_where_to_go_back_to() -> None:
    text = " ".join(text_of(verdict([bad_run()])).replace("│", " ").split())
    assert "Alert at step 25, before the evil rate first passed 5%, at step 35" in text
    assert "Back at checkpoint-20: 0.0% harmful answers" in text


def test_the_verdict_owns_up_to_an_alert_that_came_too_late() -> None:
    run = bad_run()
    run.points[0] = point(20, 0.3)
    assert "too late" in text_of(verdict([run]))


def test_a_run_without_an_alert_says_so() -> None:
    run = Run("benign", 0.0, Path("out"), [point(10, 0.0)])
    assert "No alert." in text_of(verdict([run]))


def test_the_live_table_ends_as_the_whole_table() -> None:
    console = Console(width=80)
    run = Run("benign", 0.0, Path("out"))
    with console.capture() as capture, live(console, run) as show:
        for step in (20, 40):
            run.points.append(point(step, 0.0))
            show(run)
    assert capture.get().count("benign fine-tune") == 1
    assert " 40 " in capture.get()
