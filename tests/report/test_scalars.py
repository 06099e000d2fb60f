from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.test_engine import rule
from tests.support.references import BASELINE, banked
from tests.support.runs import reading
from weightwatch.calibration.references import Reference
from weightwatch.reading.reading import Guarded
from weightwatch.report.scalars import scalars, tracked


def test_z_is_a_scalar_only_where_there_are_controls() -> None:
    assert "evil/z" not in scalars(reading(1, 0.1))
    assert scalars(reading(1, 0.1, z=4.0))["evil/z"] == 4.0


def test_the_figures_of_the_whole_model_have_a_tag_for_each_direction() -> None:
    wanted = {"update_norm": 1.0, "evil/cosine": 0.1, "evil/reach_cosine": 0.1, "evil/dose": 0.1}
    assert scalars(reading(1, 0.1, layers=[0.5], modules={"q_proj": 0.5})) == wanted


def test_trackers_get_the_figures_and_whether_each_rule_fires_under_one_name() -> None:
    found = tracked(reading(1, 0.1, layers=[0.5]), {"drift": True, "calm": False})
    assert found == {
        "weightwatch/update_norm": 1.0,
        **{f"weightwatch/evil/{name}": 0.1 for name in ("cosine", "reach_cosine", "dose")},
        "weightwatch/alerts/drift": 1.0,
        "weightwatch/alerts/calm": 0.0,
    }


def test_what_a_guard_took_back_has_a_tag_for_each_direction_it_keeps_out() -> None:
    guarded = replace(reading(2, 0.1), guard=Guarded(2, {"evil": 0.5}, 0.25))
    found = scalars(guarded)
    assert found.keys() - scalars(reading(2, 0.1)).keys() == {"guard/share", "evil/dose_taken_back"}
    assert (found["guard/share"], found["evil/dose_taken_back"]) == (0.25, 0.5)
    assert tracked(guarded, {})["weightwatch/evil/dose_taken_back"] == 0.5


def test_a_rule_with_a_baseline_has_a_figure_of_its_own(tmp_path: Path) -> None:
    made = Reference.load(banked(tmp_path, [0.13])).readings[-1]
    rules = [rule(metric="over_baseline", above=3.0, baseline=BASELINE), rule(alert="other")]
    found = scalars(made, rules)
    assert found.keys() - scalars(made).keys() == {"over_baseline/drift"}
    assert found["over_baseline/drift"] == pytest.approx(3.0)
    assert tracked(made, {}, rules)["weightwatch/over_baseline/drift"] == found["over_baseline/drift"]
