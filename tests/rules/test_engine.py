import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import dense, tiny_llama
from tests.support.references import BASELINE, banked
from tests.support.runs import reading
from weightwatch import Alert, Reading, WeightWatchError
from weightwatch.calibration.references import Reference
from weightwatch.config import Rule
from weightwatch.rules.engine import Engine, require, worst
from weightwatch.rules.manager import RuleManager
from weightwatch.setup import Setup


def rule(**changes: Any) -> Rule:
    given = {"alert": "drift", "direction": "evil", "above": 0.1, **changes}
    if "below" in changes:
        del given["above"]
    return Rule.model_validate(given)


def applied(rules: list[Rule], readings: list[Reading]) -> RuleManager:
    manager = RuleManager(rules, lambda _: True)
    manager.replay(readings)
    return manager


def story(values: list[float], **changes: Any) -> list[tuple[int, str]]:
    """Return when a rule began to fire or was resolved, judging one value for each step from 1 on."""
    readings = [reading(step, value) for step, value in enumerate(values, 1)]
    alerts = applied([rule(**changes)], readings).alerts
    return [(alert.step, alert.state) for alert in alerts]


def one(made: Reading, **changes: Any) -> Alert:
    (alert,) = applied([rule(**changes)], [made]).alerts
    return alert


def test_a_rule_fires_once_while_its_condition_holds_and_is_resolved_when_it_ceases() -> None:
    assert story([0.0, 0.2, 0.3, 0.2, 0.0, 0.0]) == [(2, "firing"), (5, "resolved")]


def test_a_value_at_the_threshold_is_not_past_it() -> None:
    assert story([0.1, 0.1]) == []


def test_for_counts_consecutive_checks() -> None:
    assert story([0.2, 0.2, 0.0, 0.2, 0.2, 0.2], **{"for": 3}) == [(6, "firing")]


def test_keep_firing_for_bridges_a_dip() -> None:
    values = [0.2, 0.0, 0.2, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0]
    assert story(values, keep_firing_for=2) == [(1, "firing"), (9, "resolved")]


def test_a_rule_that_was_resolved_fires_anew_only_after_for_checks() -> None:
    assert story([0.2, 0.2, 0.0, 0.2, 0.2], **{"for": 2}) == [(2, "firing"), (3, "resolved"), (5, "firing")]


def test_below_is_the_mirror_of_above() -> None:
    assert story([0.0, -0.2, 0.0], below=-0.1) == [(2, "firing"), (3, "resolved")]


def test_before_anything_has_moved_no_condition_holds() -> None:
    engine, alerts = Engine.of([rule(below=0.5)]).apply(reading(0, 0.0, norm=0.0))
    assert alerts == []
    assert engine.states[0].true_for == 0


def test_since_is_the_first_check_of_the_row() -> None:
    readings = [reading(step, value) for step, value in [(10, 0.2), (20, 0.0), (30, 0.2), (40, 0.2)]]
    (alert,) = applied([rule(**{"for": 2})], readings).alerts
    assert (alert.step, alert.since) == (40, 30)


def test_an_alert_says_what_fired_where_and_what_to_do() -> None:
    made = reading(7, 0.3, layers=[0.1, 0.5, -0.2, 0.3, 0.2], modules={"q_proj": 0.1, "down_proj": 0.4})
    given = {"severity": "critical", "labels": {"team": "safety"}, "actions": ["log", "stop"], "metric": "dose"}
    alert = one(made, **given)
    assert (alert.alert, alert.state, alert.severity) == ("drift", "firing", "critical")
    assert (alert.direction, alert.metric, alert.value, alert.threshold) == ("evil", "dose", 0.3, 0.1)
    assert (alert.where, alert.step, alert.since, alert.time) == ("model", 7, 7, made.time)
    assert alert.top_layers == (1, 3, 4)
    assert alert.top_modules == ("down_proj", "q_proj")
    assert alert.labels == {"team": "safety"}
    assert alert.actions == ("log", "stop")


def test_under_below_the_top_layers_are_those_that_moved_away() -> None:
    made = reading(7, -0.3, layers=[0.1, -0.5, -0.2], modules={"q_proj": 0.1})
    assert one(made, below=-0.1).top_layers == (1, 2)
    assert one(made, below=-0.1).top_modules == ()


def test_a_resolved_alert_asks_for_no_action() -> None:
    alerts = applied([rule(actions=["stop"])], [reading(1, 0.2), reading(2, 0.0)]).alerts
    assert [alert.actions for alert in alerts] == [("stop",), ()]


@pytest.mark.parametrize(
    ("scope", "where", "value"),
    [
        ("model", "model", 0.3),
        ("any_layer", "layer 1", 0.5),
        ({"layers": [0, 2]}, "layer 2", 0.4),
        ({"modules": ["q_proj"]}, "q_proj", 0.2),
        ({"modules": ["q_proj", "down_proj"]}, "down_proj", 0.6),
    ],
)
def test_a_scope_of_several_parts_is_judged_by_the_one_furthest_past(scope: Any, where: str, value: float) -> None:
    made = reading(1, 0.3, layers=[0.1, 0.5, 0.4], modules={"q_proj": 0.2, "down_proj": 0.6})
    alert = one(made, scope=scope)
    assert (alert.where, alert.value) == (where, value)


def test_layers_of_a_further_stack_are_judged_by_their_names() -> None:
    made = reading(1, 0.3, layers={0: 0.1, 3: 0.2, "encoder.block.3": 0.6})
    alert = one(made, scope={"layers": [3, "encoder.block.3"]})
    assert (alert.where, alert.value, alert.top_layers) == ("layer encoder.block.3", 0.6, ("encoder.block.3", 3, 0))
    assert Alert.from_json(json.dumps(alert.to_json())) == alert
    with pytest.raises(WeightWatchError, match=r"no layer encoder\.block\.4; it has layer 0, layer 3, layer encoder"):
        one(made, scope={"layers": ["encoder.block.4"]})


def test_any_layer_of_a_model_without_layers_is_the_model() -> None:
    assert one(reading(1, 0.3), scope="any_layer").where == "model"


def test_below_chooses_the_lowest_layer() -> None:
    alert = one(reading(1, 0.3, layers=[0.1, -0.5, -0.4]), scope="any_layer", below=-0.1)
    assert (alert.where, alert.value) == ("layer 1", -0.5)


@pytest.mark.parametrize("metric", ["cosine", "reach_cosine", "dose", "z", "over_controls"])
def test_every_metric_is_judged_by_its_own_value(metric: str) -> None:
    made = reading(1, 0.0, **{metric: 5.0})
    assert one(made, metric=metric).value == 5.0
    others = {"cosine", "reach_cosine", "dose"} - {metric}
    assert all(applied([rule(metric=other)], [made]).alerts == [] for other in others)


def test_the_last_clean_checkpoint_is_the_newest_at_which_the_condition_did_not_hold() -> None:
    readings = [
        reading(1, 0.0, checkpoint="checkpoint-1"),
        reading(2, 0.05, checkpoint="checkpoint-2"),
        reading(3, 0.05),
        reading(4, 0.2, checkpoint="checkpoint-4"),
        reading(5, 0.2, checkpoint="checkpoint-5"),
    ]
    (alert,) = applied([rule(**{"for": 2})], readings).alerts
    assert (alert.step, alert.last_clean) == (5, "checkpoint-2")


def test_without_a_clean_checkpoint_none_is_named() -> None:
    assert one(reading(1, 0.2, checkpoint="checkpoint-1")).last_clean is None


def test_each_rule_keeps_its_own_state() -> None:
    rules = [rule(alert="low"), rule(alert="high", above=0.3), rule(alert="slow", **{"for": 2})]
    manager = applied(rules, [reading(1, 0.2), reading(2, 0.4)])
    assert [(alert.alert, alert.step) for alert in manager.alerts] == [("low", 1), ("high", 2), ("slow", 2)]
    assert manager.firing == ["low", "high", "slow"]


def test_applying_changes_nothing_and_applying_twice_gives_the_same() -> None:
    engine, _ = Engine.of([rule(**{"for": 2})]).apply(reading(1, 0.2, checkpoint="checkpoint-1"))
    before = copy.deepcopy(engine)
    first, second = engine.apply(reading(2, 0.2)), engine.apply(reading(2, 0.2))
    assert first == second
    assert engine == before


def test_a_replayed_history_raises_the_alerts_of_the_live_run() -> None:
    readings = [
        reading(step, 0.05 * (step % 5), layers=[0.1 * (step % 3), -0.1], checkpoint=f"checkpoint-{step}")
        for step in range(1, 20)
    ]
    rules = [rule(**{"for": 2}), rule(alert="layers", scope="any_layer", above=0.15), rule(alert="away", below=0.02)]
    live, raised = RuleManager(rules, lambda _: True), []
    for made in readings:
        raised += live.apply(made)
    recorded = [Reading.from_json(json.dumps(made.to_json())) for made in readings]
    replayed = applied(rules, recorded)
    assert (replayed.engine, replayed.alerts) == (live.engine, raised)
    assert len(raised) > 6


def test_a_layer_that_the_model_lacks_is_an_error_that_lists_those_it_has() -> None:
    with pytest.raises(WeightWatchError, match="Rule 'drift': the model has no layer 9; it has layer 0, layer 1"):
        one(reading(1, 0.3, layers=[0.1, 0.2]), scope={"layers": [0, 9]})


def test_a_module_that_the_model_lacks_is_an_error_that_lists_those_it_has() -> None:
    with pytest.raises(WeightWatchError, match="Rule 'drift': the model has no k_proj; it has q_proj"):
        one(reading(1, 0.3, modules={"q_proj": 0.1}), scope={"modules": ["k_proj"]})


def test_z_without_controls_is_an_error_that_says_what_to_name() -> None:
    with pytest.raises(WeightWatchError, match=r"uses z, which needs a behaviour direction.*Add directions under"):
        one(reading(1, 0.3), metric="z")


def test_rules_are_checked_against_the_directions_before_there_is_a_reading() -> None:
    evil, style = dense(tiny_llama(), 1), dense(tiny_llama(), 2, name="style", kind="control")
    require([rule(), rule(metric="z")], [evil, style])
    with pytest.raises(WeightWatchError, match=r"'drift' is about the direction 'good', which is not watched. .* evil"):
        require([rule(direction="good")], [evil])
    with pytest.raises(WeightWatchError, match="uses z"):
        require([rule(metric="z")], [evil])


def over(above: float = 3.0, **changes: Any) -> Rule:
    return rule(metric="over_baseline", above=above, baseline=BASELINE, **changes)


def test_a_rule_with_a_baseline_judges_what_is_left_without_it(tmp_path: Path) -> None:
    """Along each control a run of ``banked`` is 0.01 off, so what is 0.04 above the baseline has a z of 4."""
    readings = Reference.load(banked(tmp_path, [0.1, 0.13, 0.14, 0.14])).readings
    alerts = applied([over()], list(readings)).alerts
    assert [(alert.step, alert.where) for alert in alerts] == [(30, "model")]
    assert alerts[0].value == pytest.approx(4.0)
    assert "evil over_baseline is 4 in model, past 3 since step 30. No clean checkpoint" in alerts[0].describe()
    assert worst(over(), readings[1])[1] == pytest.approx(0.0)


def test_a_baseline_whose_controls_are_not_watched_is_refused() -> None:
    with pytest.raises(WeightWatchError, match=r"The baseline of rule 'drift' has the control 'shuffled-1', which is"):
        applied([over()], [reading(10, 0.5)])
    behaviour, style = dense(tiny_llama(), 1), dense(tiny_llama(), 2, name="style", kind="control")
    with pytest.raises(WeightWatchError, match=r"has the control 'shuffled-1', which is not watched\. Watch"):
        require([over()], [behaviour, style])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Uncalibrated, beyond a baseline of 3 harmless runs, trained as this one is."),
        ({"rank": 64}, "Uncalibrated, beyond a baseline of 3 harmless runs, which this run is not like (rank 64, not"),
        ({"controls": {}}, "Uncalibrated, beyond a baseline of 3 harmless runs, which this run is not like (other con"),
        (None, "Uncalibrated, beyond a baseline of 3 harmless runs; it is not known whether"),
    ],
)
def test_what_a_threshold_beyond_a_baseline_is_worth_is_said(changes: dict[str, Any] | None, said: str) -> None:
    run = None if changes is None else Setup.model_validate({**BASELINE["setup"], **changes})
    assert (over().standing(run) or "").startswith(said)


def test_what_a_baseline_can_not_judge_is_neither_met_nor_clean(tmp_path: Path) -> None:
    """Before step 30 nothing is known; a threshold below zero, or a checkpoint there, changes nothing."""
    late = {**BASELINE, "steps": [30, 40]}
    values = [0.2] * 4
    readings = [
        replace(each, checkpoint=f"checkpoint-{each.step}")
        for each in Reference.load(banked(tmp_path, values)).readings
    ]
    low = rule(metric="over_baseline", above=-1.0, baseline=late)
    assert [worst(low, each)[1] is None for each in readings] == [True, True, True, False, False]
    (alert,) = applied([low], readings).alerts
    assert (alert.step, alert.last_clean) == (30, None)
    manager = applied([rule(metric="over_baseline", above=99.0, baseline=late)], readings)
    assert manager.firing == []
    assert manager.engine.clean == ["drift"]
    assert Reference.load(tmp_path).score(low) == pytest.approx(10.0)
