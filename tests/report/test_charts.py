from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.test_alert import ALERT
from tests.rules.test_engine import rule
from tests.support.references import BASELINE, banked
from tests.support.runs import reading
from weightwatch.calibration.references import Reference
from weightwatch.report.charts import MOST, layers_over_steps, over_baseline, over_steps, plain, thinned

READINGS = [reading(10 * n, n / 10, layers=[n / 10, -n / 5], modules={"q_proj": n / 10}) for n in range(1, 6)]


def test_a_chart_has_a_line_for_each_run_with_thresholds_and_alerts() -> None:
    figure = over_steps({"a": READINGS, "b": READINGS[:2]}, "evil", "reach_cosine", (), [rule(above=0.25)], [ALERT])
    assert [trace.name for trace in figure.data] == ["a", "b"]
    assert list(figure.data[0].y) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert figure.data[0].line.dash != figure.data[1].line.dash
    lines = {(shape.y0, shape.x0) for shape in figure.layout.shapes}
    assert (0.25, 0) in lines
    assert ALERT.step in {shape.x0 for shape in figure.layout.shapes}
    assert {each.text for each in figure.layout.annotations} == {"drift", f"ALERT {ALERT.alert}"}


def test_the_range_of_the_controls_is_a_band_of_one_run() -> None:
    both = [
        reading(each.step, 0.1).__class__(
            each.step, each.time, 1.0, {**each.directions, "low": each["evil"], "high": each["evil"]}
        )
        for each in READINGS
    ]
    figure = over_steps({"run": both}, "evil", "reach_cosine", ["low", "high"])
    assert "range of the controls" in {trace.name for trace in figure.data}
    two = over_steps({"run": both, "other": both}, "evil", "reach_cosine", ["low", "high"])
    assert "range of the controls" not in {trace.name for trace in two.data}


def test_what_is_left_without_a_baseline_is_a_curve_with_its_threshold(tmp_path: Path) -> None:
    readings = Reference.load(banked(tmp_path, [0.1, 0.13, 0.14])).readings[1:]
    over = rule(metric="over_baseline", above=3.0, baseline=BASELINE)
    late = rule(metric="over_baseline", above=8.0, baseline={**BASELINE, "steps": [20, 40]})
    runs = {"run": (over, readings), "late": (late, readings), "without controls": (over, READINGS)}
    figure = over_baseline(runs, "drift", [ALERT, replace(ALERT, alert="drift", metric="over_baseline", step=20)])
    assert list(figure.data[0].y) == pytest.approx([0.0, 3.0, 4.0])
    assert figure.data[1].y[0] is None
    assert list(figure.data[1].y[1:]) == pytest.approx([3.0, 4.0])
    assert list(figure.data[2].y) == [None] * 5
    assert {3.0, 8.0} <= {shape.y0 for shape in figure.layout.shapes}
    assert [each.text for each in figure.layout.annotations if "ALERT" in each.text] == ["ALERT drift"]


@pytest.mark.parametrize(("kinds", "rows"), [(False, ["layer 0", "layer 1"]), (True, ["q_proj"])])
def test_the_heat_map_has_a_row_for_each_part_and_zero_in_the_middle(kinds: bool, rows: list[str]) -> None:
    (trace,) = layers_over_steps(READINGS, "evil", kinds=kinds).data
    assert list(trace.y) == rows
    assert list(trace.x) == ["10", "20", "30", "40", "50"]
    assert trace.zmax == -trace.zmin
    assert trace.z[0][-1] == 0.5


def test_of_many_checks_the_largest_of_each_stretch_is_kept() -> None:
    values = [0.0] * 10_000
    values[4321] = -1.0
    kept = thinned(values)
    assert len(kept) == MOST
    assert 4321 in kept
    assert kept == sorted(kept)


def test_names_are_shown_and_not_run() -> None:
    assert plain("<b>evil</b>") == "&lt;b&gt;evil&lt;/b&gt;"
    assert "\x1b" not in plain("evil\x1b")
    figure = over_steps({"<img src=x>": READINGS}, "evil", "reach_cosine")
    assert "<img" not in figure.to_json()
