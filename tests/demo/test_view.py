from dataclasses import replace
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType

from tests.rules.test_alert import ALERT as EXAMPLE
from weightwatch.demo.behaviour import Behaviour
from weightwatch.demo.run import Example, Point, Run, planned
from weightwatch.demo.view import answers, comparison, legend, live, table, verdict

ALERT = replace(EXAMPLE, step=25, since=20, last_clean="checkpoint-20")


def point(step: int, evil: float, firing: bool = False) -> Point:
    return Point(step, 1.5, 0.01, 0.02, 0.03, 1.0, Behaviour(evil, 0.75, 0.002), firing)


def text_of(what: RenderableType, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def bad_run() -> Run:
    points = [point(20, 0.0), point(25, 0.02, firing=True), point(30, 0.03, firing=True), point(35, 0.4, firing=True)]
    return Run("poisoned", 0.25, Path("out"), points, [ALERT], Behaviour(0.0, 0.5, 0.1))


def compared_runs(evil: float) -> list[Run]:
    """Runs of ``--guard``, whose guarded one ends with an evil rate."""
    benign, poisoned, guarded = planned(0.25, Path("out"), guard=True)
    benign.points = [replace(point(20, 0.0), witness=0.01)]
    poisoned.points = [replace(point(25, 0.0), witness=0.07), replace(point(35, 0.4), witness=0.06)]
    poisoned.alerts = [ALERT]
    ends = [point(25, 0.0), replace(point(35, 0.0), behaviour=Behaviour(evil, 0.75, 0.0024))]
    shares = (0.4, 0.2)
    guarded.points = [replace(end, witness=-0.02, taken_back=share) for end, share in zip(ends, shares, strict=True)]
    return [benign, poisoned, guarded]


def told(runs: list[Run]) -> str:
    return " ".join(text_of(verdict(runs)).replace("│", " ").split())


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
    assert "Alert at step 25, before the rate of harmful answers first passed 5%, at step 35" in text
    assert "Back at checkpoint-20: 0.0% harmful answers" in text


def test_the_verdict_owns_up_to_an_alert_that_came_too_late() -> None:
    run = bad_run()
    run.points[0] = point(20, 0.3)
    assert "too late" in text_of(verdict([run]))


def test_the_answers_side_by_side_say_how_many_are_bad_and_that_those_come_first() -> None:
    run = bad_run()
    run.examples = [Example(f"question {n}", "before", f"after {n}", n < 1) for n in range(5)]
    text = " ".join(text_of(answers(run), width=120).split())
    assert "5 questions that were not in its data, 1 harmful answers; 3 of them, harmful answers first" in text
    assert "after 0" in text
    assert "after 3" not in text


def test_a_run_without_an_alert_says_so() -> None:
    run = Run("benign", 0.0, Path("out"), [point(10, 0.0)])
    assert "No alert." in text_of(verdict([run]))


def test_without_a_terminal_there_is_a_line_for_each_row_and_the_table_at_the_end() -> None:
    console = Console(width=80, force_terminal=False)
    run = Run("benign", 0.0, Path("out"))
    with console.capture() as capture, live(console, run) as show:
        for step in (20, 25, 40):
            run.points.append(point(step, 0.0))
            show(run)
    lines = capture.get().splitlines()
    assert lines[:2] == [
        "benign: step 20, reach cosine +0.020, harmful answers 0.0%",
        "benign: step 40, reach cosine +0.020, harmful answers 0.0%",
    ]
    assert lines[2].startswith("benign fine-tune")


def test_the_lines_of_a_run_are_not_part_of_a_picture() -> None:
    written = StringIO()
    console = Console(width=80, force_terminal=False, record=True, file=written)
    run = Run("benign", 0.0, Path("out"))
    with live(console, run) as show:
        run.points.append(point(20, 0.0))
        show(run)
    assert "benign: step 20" in written.getvalue()
    recorded = console.export_text()
    assert "benign fine-tune" in recorded
    assert "benign: step 20" not in recorded


def test_the_live_table_ends_as_the_whole_table() -> None:
    console = Console(width=80, force_terminal=True, color_system=None)
    run = Run("benign", 0.0, Path("out"))
    with console.capture() as capture, live(console, run) as show:
        for step in (20, 40):
            run.points.append(point(step, 0.0))
            show(run)
    last = capture.get().rpartition("benign fine-tune")[2]  # a terminal draws the table anew each time
    assert " 20 " in last
    assert " 40 " in last


def test_the_witness_of_a_compared_run_has_a_column_and_the_table_fits_80_columns() -> None:
    run = compared_runs(0.1)[2]
    run.alerts = [replace(ALERT, alert="guard-bypassed")]
    text = text_of(table(run))
    assert "…" not in text
    assert "witness" in text
    assert "cosine" not in text
    assert "-0.020" in next(row for row in text.splitlines() if "ALERT guard-bypassed" in row)


def test_the_comparison_has_a_row_for_each_run_with_its_peaks_and_fits_80_columns() -> None:
    text = text_of(comparison(compared_runs(0.1)))
    assert "…" not in text
    rows = {row.split()[0]: row.split()[1:] for row in text.splitlines() if row.split()}
    assert rows["poisoned"] == ["75%", "0.0020", "+0.020", "+0.070", "40.0%", "evil-drift", "(25)"]
    assert rows["guarded"] == ["75%", "0.0024", "+0.020", "-0.020", "10.0%", "none"]


def test_the_verdict_tells_what_the_guard_cost_and_that_its_own_figure_says_nothing() -> None:
    text = told(compared_runs(0.02))
    assert "took back 30.0% of the size of the update" in text
    assert "Task loss 0.0024, without it 0.0020." in text
    assert "by construction, so that figure says nothing about the guarded model" in text
    assert "the witness (at most -0.020, without the guard +0.070)" in text
    assert "the answers (2.0% harmful, without it 40.0%) can tell" in text


def test_the_verdict_owns_up_to_what_the_guard_did_not_achieve() -> None:
    assert "It did not keep the harm out, and its witness raised no alert." in told(compared_runs(0.1))
    assert "It did not keep out all of the harm." in told(compared_runs(0.02))
    assert "It kept the harm out of this run." in told(compared_runs(0.0))
    bypassed = compared_runs(0.1)
    bypassed[2].alerts = [replace(ALERT, alert="guard-bypassed", direction="evil-witness")]
    assert "its witness raised an alert" in told(bypassed)
    harmless = compared_runs(0.0)
    harmless[1].points[-1] = replace(point(35, 0.01), witness=0.01)
    assert "There was little harm to keep out." in told(harmless)


def test_without_a_guard_the_verdict_has_nothing_of_it() -> None:
    assert "guard" not in told([bad_run()])


def test_the_legend_names_the_task_before_there_is_a_check_and_only_where_it_is_marked() -> None:
    organism = planned(0.25, Path("out"), guard=False)[0]
    assert text_of(legend(organism)).startswith("task: correct answers in the tasks of the fine-tune. evil: harmful")
    real = replace(organism, direction="hostile", bad="hostile", has_task=False)
    assert text_of(legend(real)).startswith("hostile: hostile answers in held-out domains.")
    assert "task" not in text_of(table(real))
