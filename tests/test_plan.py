from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.models import low_rank, tiny_llama
from weightwatch import Alert, Reading, WeightWatchError
from weightwatch.plan import Plan
from weightwatch.report.base import Reporter

RULE = {"alert": "drift", "direction": "evil", "above": 0.1}


def test_directions_come_from_the_call_else_from_the_settings_and_controls_are_last(tmp_path: Path) -> None:
    evil, style = (low_rank(tiny_llama(), i, name=n).save(tmp_path / n) for i, n in enumerate(("evil", "style")))
    settings = {"directions": [str(evil)], "controls": [str(style)]}
    plan = Plan.of(None, settings)
    assert [(d.name, d.card.kind) for d in plan.directions] == [("evil", "behaviour"), ("style", "control")]
    good = low_rank(tiny_llama(), 7, name="good")
    plan = Plan.of([good], settings)
    assert [d.name for d in plan.directions] == ["good", "style"]
    assert plan.config.directions == ["good"]


@pytest.mark.parametrize(("controls", "metric", "told"), [(2, "z", True), (5, "z", False), (2, "over_controls", False)])
def test_a_rule_on_z_over_few_controls_says_that_it_is_rough(
    controls: int, metric: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_llama()
    watched = [low_rank(model, 1), *(low_rank(model, 2 + n, name=f"c{n}", kind="control") for n in range(controls))]
    Plan.of(watched, {"rules": [{**RULE, "metric": metric}]})
    assert ("rule 'drift' uses z over 2 controls, which is a rough figure" in caplog.text) == told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": [{**RULE, "direction": "good"}]}, "is about the direction 'good', which is not watched"),
        ({"every": 0}, "every: 0 is not allowed"),
        ({"reference": "/nowhere"}, "/nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_model(settings: dict[str, object], message: str) -> None:
    with pytest.raises(WeightWatchError, match=message):
        Plan.of(low_rank(tiny_llama(), 1), settings)


def test_a_witness_is_watched_with_a_rule_of_its_own_and_the_settings_load_again(tmp_path: Path) -> None:
    evil, other = (low_rank(tiny_llama(), i, name=n).save(tmp_path / n) for i, n in enumerate(("evil", "other")))
    guard = {"witness": str(other), "witness_above": 0.3}
    plan = Plan.of(None, {"directions": [str(evil)], "guard": guard, "rules": []})
    assert {direction.name for direction in plan.directions} == {"evil", "other"}
    (rule,) = plan.config.rules
    assert (rule.alert, rule.direction, rule.threshold, rule.severity) == ("guard-bypassed", "other", 0.3, "critical")
    assert plan.config.guard is not None
    assert plan.config.guard.witness == "other"
    (tmp_path / "config.yaml").write_text(plan.config.to_yaml())
    again = Plan.of(None, tmp_path / "config.yaml")
    assert again.config == plan.config
    assert {direction.name for direction in again.directions} == {"evil", "other"}


def test_a_rule_about_the_witness_may_be_ones_own(tmp_path: Path) -> None:
    rule = {"alert": "guard-bypassed", "direction": "other", "above": 0.2, "actions": ["stop"]}
    several = [low_rank(tiny_llama(), i, name=n) for i, n in enumerate(("evil", "other"))]
    plan = Plan.of(several, {"guard": {"witness": "other"}, "rules": [rule]})
    assert [(rule.alert, rule.actions) for rule in plan.config.rules] == [("guard-bypassed", ["stop"])]


def test_a_rule_of_that_name_about_another_direction_is_refused() -> None:
    several = [low_rank(tiny_llama(), i, name=n) for i, n in enumerate(("evil", "other"))]
    rule = {"alert": "guard-bypassed", "direction": "evil", "above": 0.2}
    with pytest.raises(
        WeightWatchError, match=r"^Rule 'guard-bypassed' is about 'evil', but .* witness, which is 'other'"
    ):
        Plan.of(several, {"guard": {"directions": ["evil"], "witness": "other"}, "rules": [rule]})


@pytest.mark.parametrize("kind", ["behaviour", "control"])
def test_a_witness_with_the_name_of_another_direction_is_refused(kind: str, tmp_path: Path) -> None:
    watched = [low_rank(tiny_llama(), 0, name="evil"), low_rank(tiny_llama(), 1, name="other", kind=kind)]
    path = low_rank(tiny_llama(), 2, name="other").save(tmp_path / "built")
    message = (
        rf"^guard: the witness at {path} is called 'other', as another watched direction is\. Give each its own name"
    )
    with pytest.raises(WeightWatchError, match=message):
        Plan.of(watched, {"guard": {"directions": ["evil"], "witness": str(path)}})


def test_a_witness_that_is_watched_already_may_be_named_by_its_path(tmp_path: Path) -> None:
    watched = [low_rank(tiny_llama(), i, name=n) for i, n in enumerate(("evil", "other"))]
    path = watched[1].save(tmp_path / "built")
    plan = Plan.of(watched, {"guard": {"directions": ["evil"], "witness": str(path)}})
    assert [direction.name for direction in plan.directions] == ["evil", "other"]
    assert plan.config.guard is not None
    assert plan.config.guard.witness == "other"


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({"witness": "none", "directions": ["envy"]}, "guard: 'envy' is not watched"),
        ({"witness": "evil"}, "the witness is the only behaviour that is watched"),
        ({"witness": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_guard_that_does_not_fit_is_refused_before_there_is_a_model(guard: dict[str, object], message: str) -> None:
    with pytest.raises(WeightWatchError, match=message):
        Plan.of(low_rank(tiny_llama(), 1), {"guard": guard})


class Counter(Reporter):
    """Takes down the steps of the checks."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        self.steps.append(reading.step)


def test_a_session_has_the_plans_directions_settings_and_further_reporters(tmp_path: Path) -> None:
    counted = Counter()
    plan = Plan.of(low_rank(tiny_llama(), 1), {"rules": [RULE], "tensorboard": False, "summary": False})
    session = plan.session(tmp_path / "weightwatch", tmp_path / "runs", counted)
    assert (session.monitor.directions, session.config) == ([*plan.directions], plan.config)
    from tests.support.models import lora

    model = lora(tiny_llama())
    session.begin(model, 0)
    assert session.last is not None
    session.step_end(model, 50, saves=False, stops=False)
    assert counted.steps == [0, 50]
    assert not (tmp_path / "runs").exists()


def test_controls_stored_beside_a_direction_are_watched_unless_the_settings_name_others(tmp_path: Path) -> None:
    model = tiny_llama()
    evil = low_rank(model, 1, name="evil").save(tmp_path / "evil")
    control = low_rank(model, 2, name="evil-shuffled-1").save(evil / "controls" / "evil-shuffled-1")
    style = low_rank(model, 3, name="style").save(tmp_path / "style")
    plan = Plan.of(evil, {"every": 5})
    assert [(each.name, each.card.kind) for each in plan.directions][1:] == [("evil-shuffled-1", "control")]
    assert plan.config.controls == [str(control)]
    assert [each.name for each in Plan.of(None, {"directions": [str(evil)]}).directions] == ["evil", "evil-shuffled-1"]
    assert [each.name for each in Plan.of(evil, {"controls": [str(style)]}).directions] == ["evil", "style"]
    assert [each.name for each in Plan.of(evil, {"controls": []}).directions] == ["evil"]
    assert [each.name for each in Plan.of(low_rank(model, 1, name="evil"), None).directions] == ["evil"]


def test_settings_without_rules_get_default_ones_but_not_with_a_guard_and_not_if_they_want_none(
    tmp_path: Path,
) -> None:
    model = tiny_llama()
    evil, other = (low_rank(model, i, name=n).save(tmp_path / n) for i, n in enumerate(("evil", "other")))
    (rule,) = Plan.of(evil, None).config.rules
    assert (rule.alert, rule.metric, rule.above, rule.default) == ("evil-drift", "reach_cosine", 0.1, True)
    assert Plan.of(evil, {"rules": []}).config.rules == []
    both = {"directions": [str(evil), str(other)], "guard": {"directions": ["evil"], "witness": "other"}}
    assert [rule.alert for rule in Plan.of(None, both).config.rules] == ["guard-bypassed"]
    (tmp_path / "config.yaml").write_text(Plan.of(evil, None).config.to_yaml())
    assert Plan.of(None, tmp_path / "config.yaml").config.rules == [rule]
