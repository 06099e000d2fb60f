from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.test_engine import rule
from tests.support.references import BASELINE, banked, record
from weightwatch.record.history import History
from weightwatch.record.recorded_run import RecordedRun
from weightwatch.report.html import LIMITS, figures, guarded, markdown, page, verdict
from weightwatch.rules.manager import RuleManager


def watched(folder: Path, values: list[float], number: int = 0) -> RecordedRun:
    """A run with a rule, whose alerts are recorded."""
    mine = {"alert": "drift", "direction": "evil", "above": 0.25}
    history = History(record(folder, values, number, rules=[mine]) / "weightwatch")
    manager = RuleManager([rule(above=0.25)], lambda _: True)
    for reading in history.readings():
        for alert in manager.apply(reading):
            history.add_alert(alert)
    return RecordedRun.of(folder)


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    bad, good = watched(tmp_path / "bad", [0.1, 0.3]), watched(tmp_path / "good", [0.1, 0.2], 1)
    assert verdict(bad) == (
        "drift fired at step 20 (firing now: drift); last clean checkpoint: no clean checkpoint. It was recorded up to "
        "step 20, in 3 checks."
    )
    assert verdict(good).startswith("No alert. It was recorded")
    assert verdict(RecordedRun.of(record(tmp_path / "free", [0.1], 2))).startswith("There were no rules")
    text = page([bad, good, RecordedRun.of(tmp_path / "free")])
    assert [text.count(f'<p class="{colour}">') for colour in ("bad", "good", "open")] == [1, 1, 1]
    assert text.index("drift fired at step 20") < text.index("figures at step")
    assert text.count("No alert.") == 1


def test_the_verdict_on_default_rules_says_what_they_are_worth(tmp_path: Path) -> None:
    for number, values in enumerate(([0.1, 0.2], [0.1, 0.3])):
        run = watched(tmp_path / str(number), values, number)
        assert "defaults" not in verdict(run)
        assert run.config is not None
        rules = [rule.model_copy(update={"default": True}) for rule in run.config.rules]
        default = replace(run, config=run.config.model_copy(update={"rules": rules}))
        assert verdict(default).endswith("checks. The thresholds are defaults, which are not calibrated.")


def test_the_page_needs_no_network_and_has_the_charts_alerts_settings_and_limits(tmp_path: Path) -> None:
    text = page([watched(tmp_path / "run", [0.1, 0.3])])
    body = text[text.index("</script></head>") :]
    assert "src=" not in body
    assert "http" not in body.replace("http://www.w3.org", "")
    assert body.count("Plotly.newPlot") == 3
    assert "evil reach_cosine is 0.3 in model" in body
    assert "alert: drift" in body
    assert all(limit.replace("'", "&#x27;") in body for limit in LIMITS)


def test_what_is_not_ours_is_shown_and_not_run(tmp_path: Path) -> None:
    text = page([watched(tmp_path / "<script>", [0.1])])
    body = text[text.index("</script></head>") :]
    assert "&lt;script&gt;" in body
    assert "<h1>weightwatch: <script>" not in body


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [watched(tmp_path / place / "run", [0.1, number / 10], number) for number, place in enumerate("ab")]
    text = page(runs).replace("\\u002f", "/")
    assert all(str(run.record) in text for run in runs)


def test_the_markdown_has_the_figures_and_the_alerts(tmp_path: Path) -> None:
    text = markdown([watched(tmp_path / "run", [0.1, 0.3])])
    assert text.startswith("# weightwatch: run\n\ndrift fired at step 20")
    assert "| evil | +0.300 | +0.300 | +0.300 | 20 | +0.300 | +0.300 |" in text
    assert "\n1. drift (warning) at step 20" in text


def test_a_run_without_a_guard_has_no_price(tmp_path: Path) -> None:
    run = watched(tmp_path / "run", [0.1])
    assert guarded(run) is None
    assert figures(run)[0][0] == "direction"


@pytest.mark.slow
def test_the_guard_of_a_run_has_its_price_on_the_page(tmp_path: Path) -> None:
    run = watched(tmp_path / "run", [0.1])
    (run.record / "config.yaml").write_text(
        "directions: [evil]\nguard: {witness: none, mode: update, directions: [evil]}\n"
    )
    told = guarded(RecordedRun.of(tmp_path / "run"))
    assert told is not None
    assert told.startswith("the guard (mode: update) took back")


def test_a_run_that_is_named_twice_is_on_the_page_once(tmp_path: Path) -> None:
    run = watched(tmp_path / "run", [0.1, 0.3])
    assert page([run, run]).count("Plotly.newPlot") == page([run]).count("Plotly.newPlot")


def test_a_rule_with_a_baseline_has_a_chart_of_the_runs_that_have_it(tmp_path: Path) -> None:
    """The alert of a run with another rule of that name is not in it."""
    over = {"alert": "drift", "direction": "evil", "metric": "over_baseline", "above": 3.0, "baseline": BASELINE}
    runs = [
        RecordedRun.of(banked(tmp_path / "over", [0.1, 0.13], 1, rules=[over])),
        watched(tmp_path / "plain", [0.1, 0.3], 2),
    ]
    text = page(runs)
    assert text.count("drift: over the baseline") == 1
    chart = text[text.index("drift: over the baseline") - 4000 : text.index("drift: over the baseline")]
    assert "ALERT drift" not in chart
