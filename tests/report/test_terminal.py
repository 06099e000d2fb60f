from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rules.test_alert import ALERT
from tests.support.models import low_rank, tiny_llama
from tests.support.runs import reading, score
from weightwatch.config import Config, GuardSettings
from weightwatch.reading.reading import Reading
from weightwatch.report.base import Outcome, Run
from weightwatch.report.console import console
from weightwatch.report.terminal import ClosingTable, Summary, closing, number, opening, profile, scanned
from weightwatch.rules.alert import Alert
from weightwatch.vectors.printable import printable


def printed(readings: list[Reading], alerts: list[Alert] | None = None, width: int = 140) -> str:
    peaks = {name: (found.reach_cosine, readings[-1].step) for name, found in readings[-1].directions.items()}
    peaks |= {"evil": max((r["evil"].reach_cosine, r.step) for r in readings)}
    screen = console(width=width, force_terminal=False)
    with screen.capture() as capture:
        screen.print(ClosingTable(Outcome(readings[-1], peaks, alerts or [])))
    return capture.get()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "+0.123"),
        (-0.5, "-0.500"),
        (0.0123, "+0.012"),
        (0.00123, "+0.0012"),
        (-0.0004, "-0.00040"),
        (3.14e-7, "+3.1e-07"),
        (0.0, "+0.000"),
        (None, "–"),
    ],
)
def test_a_figure_is_signed_and_a_small_one_has_two_digits(value: float | None, text: str) -> None:
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


def test_the_table_names_each_rule_that_fired_with_its_first_step() -> None:
    other = replace(ALERT, alert="evil-layer", step=50)
    alerts = [replace(ALERT, state="resolved", step=30), ALERT, other, replace(ALERT, step=60)]
    assert "evil-drift at 40, evil-layer at 50" in printed([reading(40, 0.4)], alerts)


@pytest.mark.parametrize("width", [140, 80, 60, 40])
def test_a_narrow_terminal_goes_without_other_columns_than_the_alerts(width: int) -> None:
    """As wide as a log file is to rich: 80 columns."""
    last = reading(12_000, 0.4, layers=[0.1] * 32, z=7.0)
    last = replace(last, directions={**last.directions, "sycophancy": last["evil"]})
    lines = printed([last], [replace(ALERT, step=1000)], width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert any("evil " in line and "evil-drift at 1000" in line for line in lines)
    assert any("sycophancy" in line and "none" in line for line in lines)
    assert any("+0.400 at 12000" in line for line in lines) == (width > 40)
    assert any("████" in line for line in lines) == (width == 140)


def test_a_name_is_text_in_every_table() -> None:
    last = reading(40, 0.4)
    for name in ("[/evil]", "\x1b[2Jevil"):
        hostile = replace(last, directions={"evil": last["evil"], name: last["evil"]})
        fired = replace(ALERT, alert=name, direction=name)
        screen = console(width=140)
        with screen.capture() as capture:
            screen.print(scanned([hostile]))
        text = printed([hostile], [fired]) + capture.get()
        assert text.count(printable(name)) == 3
        assert "\x1b" not in text


def started(folder: Path, *, controls: Sequence[str] = (), **settings: Any) -> str:
    base = tiny_llama()
    watched = [low_rank(base, 1)] + [low_rank(base, 2, name=name, kind="control") for name in controls]
    return opening(Run(watched, Config.load(settings), 0), folder)


def test_a_run_begins_with_what_is_watched_how_often_by_which_rules_and_where_the_record_is() -> None:
    rules = [{"alert": alert, "direction": "evil", "above": 0.1} for alert in ("drift", "layers")]
    assert started(Path("out/weightwatch"), controls=["style"], rules=rules) == (
        "weightwatch: watching evil (controls: style) every 50 steps; rules: drift, layers; record: out/weightwatch"
    )
    assert started(Path("out"), every=1) == "weightwatch: watching evil every step; no rules, so no alerts; record: out"


def test_the_line_and_the_table_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(Path("a very long folder" * 10))
    summary.begin(Run([low_rank(tiny_llama(), 1)], Config(), 0))
    assert capsys.readouterr().out.count("\n") == 1
    summary.end(Outcome(reading(40, 0.4), {"evil": (0.4, 40)}, [ALERT]))
    assert "evil-drift at 40" in capsys.readouterr().out


# With a guard


def closed(
    settings: dict[str, object], *alerts: Alert, taken: dict[str, float] | None = None, value: float = 0.4
) -> str:
    """Return the closing line of a guard whose witness ended with a value."""
    last = replace(reading(40, 0.0), directions={name: reading(40, value)["evil"] for name in ("evil", "other")})
    outcome = Outcome(last, {"evil": (0.0, 0), "other": (value, 40)}, alerts, taken or {})
    given = {"witness": "other", "mode": "update", **settings}
    return closing(outcome, GuardSettings.model_validate(given))


@pytest.mark.parametrize(
    ("settings", "did"),
    [
        ({}, "took back a dose of 1.250 of evil"),
        ({"mode": "checkpoint"}, "took back a dose of 1.250 of evil"),
        ({"mode": "subspace", "sides": "outputs"}, "kept the outputs that its directions write to as they were"),
        ({"mode": "subspace", "sides": "inputs"}, "kept the inputs that its directions read from as they were"),
        (
            {"mode": "subspace", "sides": "both"},
            "kept the outputs that its directions write to and the inputs that its directions read from as they were",
        ),
        ({"mode": "gradient"}, "took its directions out of the gradients"),
        ({"mode": "preventative"}, "added its directions while training"),
    ],
)
def test_a_guarded_run_closes_with_what_the_guard_did_and_what_its_witness_reads(
    settings: dict[str, object], did: str
) -> None:
    taken = {"evil": 1.25, "spite": 0.0} if settings.get("mode") in (None, "checkpoint") else {}
    mode = settings.get("mode", "update")
    assert closed(settings, taken=taken) == (
        f"weightwatch: the guard (mode: {mode}) {did}; its witness other reads +0.400 (reach cos.), above 0.02"
    )


def test_what_the_closing_line_says_of_a_guard_that_had_nothing_to_do() -> None:
    assert closed({"witness": "none"}) == "weightwatch: the guard (mode: update) took back nothing"
    assert closed({"witness_above": 0.5}).endswith("other reads +0.400 (reach cos.), not above 0.5")
    assert "(mode: subspace) was not switched on; its" in closed({"mode": "subspace", "when": "alert"}, ALERT)
    armed = replace(ALERT, actions=("log", "guard"))
    assert "(mode: subspace) kept the outputs" in closed({"mode": "subspace", "when": "alert"}, ALERT, armed)


def test_a_guarded_run_begins_with_what_is_kept_out_how_and_which_witness_there_is(tmp_path: Path) -> None:
    guard = {"witness": "other", "directions": ["evil"], "mode": "subspace"}
    assert "guard: on (keeps evil out, mode: subspace, witness: other); no rules" in started(tmp_path, guard=guard)
    guard = {"witness": "none", "when": "alert"}
    rule = {"alert": "drift", "direction": "evil", "above": 0.1, "actions": ["guard"]}
    told = "guard: ready, switched on by an alert (keeps evil out, mode: subspace, no witness); rules: drift"
    assert told in started(tmp_path, guard=guard, rules=[rule])


def test_the_closing_line_is_printed_with_a_guard_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for guard in ({}, {"guard": {"witness": "none", "mode": "update"}}):
        summary = Summary(Path("out"))
        summary.begin(Run([low_rank(tiny_llama(), 1)], Config.load(guard), 0))
        summary.end(Outcome(reading(40, 0.4), {"evil": (0.4, 40)}, [], {"evil": 0.5}))
        assert ("took back a dose of 0.500 of evil" in capsys.readouterr().out) == bool(guard)


def test_the_table_of_a_scan_has_a_row_for_each_direction_and_names_a_step_once() -> None:
    both = replace(reading(10, 0.4), directions={"evil": reading(10, 0.4)["evil"], "style": reading(10, 0.1)["evil"]})
    screen = console(width=100, force_terminal=False)
    with screen.capture() as capture:
        screen.print(scanned([both, reading(20, 0.2)]))
    rows = [line.split()[:2] for line in capture.get().splitlines() if "+0." in line]
    assert rows == [["10", "evil"], ["style", "+0.100"], ["20", "evil"]]
