import pytest

from tests.support.models import low_rank, tiny_llama
from weightwatch.config import Config, Rule
from weightwatch.rules.defaults import default_rules, rules_of_a_scan
from weightwatch.setup import Setup
from weightwatch.vectors import Direction


def watched(shuffled: int, plain: int = 0) -> list[Direction]:
    model = tiny_llama()
    bank = [low_rank(model, 10 + n, name=f"s{n}", kind="control").with_card(shuffled=True) for n in range(shuffled)]
    named = [low_rank(model, 30 + n, name=f"c{n}", kind="control") for n in range(plain)]
    return [low_rank(model, 1, name="evil"), low_rank(model, 2, name="rude"), *bank, *named]


@pytest.mark.parametrize(
    ("shuffled", "plain", "metric", "above"),
    [
        (5, 0, "over_controls", 0.0),
        (7, 2, "over_controls", 0.0),
        (4, 6, "reach_cosine", 0.1),
        (0, 0, "reach_cosine", 0.1),
    ],
)
def test_only_enough_controls_of_shuffled_labels_are_compared_with(
    shuffled: int, plain: int, metric: str, above: float
) -> None:
    rules = default_rules(watched(shuffled, plain))
    assert [(rule.alert, rule.direction) for rule in rules] == [("evil-drift", "evil"), ("rude-drift", "rude")]
    assert {(rule.metric, rule.above, rule.for_, rule.severity) for rule in rules} == {(metric, above, 2, "warning")}


def test_a_default_rule_says_that_it_is_one() -> None:
    (rule, _) = default_rules(watched(0))
    setup = Setup(every=5, directions={"evil": "3f"})
    assert rule.standing(setup) == "Uncalibrated: a default threshold, since the settings have no rules."
    assert rule.model_copy(update={"default": False}).standing(setup) is None


def test_a_default_rule_of_a_scan_judges_each_checkpoint_by_itself() -> None:
    live = default_rules(watched(5))
    scanned = rules_of_a_scan(Config(), watched(5))
    assert [rule.for_ for rule in scanned] == [1, 1]
    assert [rule.model_copy(update={"for_": 2}) for rule in scanned] == live
    recorded = Config.load({"rules": [rule.model_dump(by_alias=True) for rule in live]})
    assert rules_of_a_scan(recorded, watched(5)) == scanned


def test_a_rule_beside_recorded_default_ones_is_that_of_the_scan() -> None:
    mine = Rule.model_validate({"alert": "mine", "direction": "evil", "above": 0.3})
    recorded = Config(rules=[*default_rules(watched(5)), mine])
    assert rules_of_a_scan(recorded, watched(5)) == [mine]


def test_rules_that_somebody_chose_are_those_of_the_scan_even_if_they_are_none() -> None:
    chosen = Config.load({"rules": [{"alert": "drift", "direction": "evil", "above": 0.3, "for": 2}]})
    assert rules_of_a_scan(chosen, watched(5)) == chosen.rules
    assert rules_of_a_scan(Config.load({"rules": []}), watched(5)) == []


def test_a_scan_of_controls_alone_has_no_rule() -> None:
    controls = [direction for direction in watched(5, 1) if direction.card.kind == "control"]
    assert rules_of_a_scan(Config(), controls) == []
