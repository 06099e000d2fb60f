from dataclasses import replace

from tests.support.runs import reading
from weightwatch.reading.reading import Guarded
from weightwatch.report.scalars import PendingScalars, scalars


def test_z_is_a_scalar_only_where_there_are_controls() -> None:
    assert "evil/z" not in scalars(reading(1, 0.1))
    assert scalars(reading(1, 0.1, z=4.0))["evil/z"] == 4.0


def test_the_figures_of_the_whole_model_have_a_tag_for_each_direction() -> None:
    wanted = {"update_norm": 1.0, "evil/cosine": 0.1, "evil/reach_cosine": 0.1, "evil/dose": 0.1}
    assert scalars(reading(1, 0.1, layers=[0.5], modules={"q_proj": 0.5})) == wanted


def test_pending_figures_are_those_of_the_newest_reading_and_are_taken_once() -> None:
    pending = PendingScalars()
    assert pending.take() == {}
    for step in (1, 2):
        pending.check(reading(step, 0.1 * step), [], {})
    assert pending.take()["weightwatch/evil/cosine"] == 0.2
    assert pending.take() == {}


def test_the_reading_before_the_first_step_is_not_for_trackers() -> None:
    pending = PendingScalars()
    pending.check(reading(0, 0.0, norm=0.0), [], {})
    assert pending.take() == {}


def test_what_a_guard_took_back_has_a_tag_for_each_direction_it_keeps_out() -> None:
    guarded = replace(reading(2, 0.1), guard=Guarded(2, {"evil": 0.5}, 0.25))
    found = scalars(guarded)
    assert found.keys() - scalars(reading(2, 0.1)).keys() == {"guard/share", "evil/dose_taken_back"}
    assert (found["guard/share"], found["evil/dose_taken_back"]) == (0.25, 0.5)
    pending = PendingScalars()
    pending.check(guarded, [], {})
    assert pending.take()["weightwatch/evil/dose_taken_back"] == 0.5
