import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tests.support.references import BASELINE
from weightwatch import Config, WeightWatchError
from weightwatch.config import GuardSettings, Layers, Mode, Modules, Rule

GUARD = "guard:\n  witness: none\n"
RULE = "directions: [evil]\nrules:\n  - alert: drift\n    direction: evil\n    above: 0.1\n"


def saved(folder: Path, text: str) -> Path:
    path = folder / "weightwatch.yaml"
    path.write_text(text)
    return path


def test_nothing_given_means_the_defaults() -> None:
    config = Config.load(None)
    assert (config.every, config.on_error, config.tensorboard, config.rules) == (50, "log", True, [])


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert Config.load(saved(tmp_path, "# nothing yet\n")) == Config()


def test_a_path_a_dict_and_a_config_say_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path, RULE)
    settings = yaml.safe_load(RULE)
    config = Config(directions=["evil"], rules=[Rule(alert="drift", direction="evil", above=0.1)])
    assert Config.load(path) == Config.load(str(path)) == Config.load(settings) == Config.load(config) == config


def test_a_rule_reads_in_prometheus_words() -> None:
    text = """
rules:
  - alert: drift
    direction: evil
    metric: dose
    scope: {layers: [3, 4]}
    below: -0.2
    for: 3
    keep_firing_for: 2
    severity: critical
    labels: {team: safety}
    actions: [log, save, stop]
"""
    (rule,) = Config.load(yaml.safe_load(text)).rules
    assert rule.scope == Layers(layers=[3, 4])
    assert (rule.for_, rule.keep_firing_for, rule.threshold, rule.severity) == (3, 2, -0.2, "critical")
    assert rule.is_true(-0.3)
    assert not rule.is_true(-0.2)
    assert rule.labels == {"team": "safety"}
    assert rule.actions == ["log", "save", "stop"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": "dose"}, "goes with a `baseline`"),
        ({"baseline": None}, "goes with a `baseline`"),
        ({"scope": "any_layer"}, "goes with `above` and the whole model"),
        ({"above": None, "below": -3}, "goes with `above` and the whole model"),
        ({"direction": "good"}, "the `baseline` is of 'evil', not of the direction of the rule"),
    ],
)
def test_a_baseline_and_its_metric_go_together(changes: dict[str, object], told: str, tmp_path: Path) -> None:
    given = {"alert": "drift", "direction": "evil", "metric": "over_baseline", "above": 3, "baseline": BASELINE}
    config = Config.load({"rules": [given]})
    assert Config.load(saved(tmp_path, config.to_yaml())) == config
    with pytest.raises(WeightWatchError, match=told):
        Config.load({"rules": [{key: value for key, value in {**given, **changes}.items() if value is not None}]})


def test_a_threshold_may_be_a_whole_number() -> None:
    (rule,) = Config.load({"rules": [{"alert": "a", "direction": "evil", "above": 0}]}).rules
    assert rule.is_true(0.001)
    assert not rule.is_true(0.0)


@pytest.mark.parametrize(
    "scope", ["model", "any_layer", Layers(layers=[1, "encoder.block.3"]), Modules(modules=["q_proj", "down_proj"])]
)
def test_what_is_written_as_resolved_loads_back_equal(scope: object, tmp_path: Path) -> None:
    rule = Rule(alert="drift", direction="evil", below=-0.15, scope=scope, for_=2, labels={"a": "b"})
    config = Config(directions=["evil", "ünïcode"], controls=["style"], every=7, rules=[rule], reference="base")
    text = config.to_yaml()
    assert Config.load(saved(tmp_path, text)) == config
    assert "for: 2" in text
    assert "severity: warning" in text


CASES = {
    "an unknown key": ("every: 5\ndirection: [evil]\n", 2, "direction is not a known key; known are directions, contr"),
    "an unknown key of a rule": (RULE + "    abve: 1\n", 6, "rules[0].abve is not a known key; known are alert, dir"),
    "a negative for": (RULE + "    for: -2\n", 6, "rules[0].for: -2 is not allowed; it should be greater than or equ"),
    "a for that is no number": (RULE + "    for: two\n", 6, "rules[0].for: 'two' is not allowed; it should be a val"),
    "a for of zero": (
        RULE + "    for: 0\n",
        6,
        "rules[0].for: 0 is not allowed; it should be greater than or equal to 1",
    ),
    "a truth for a number": (RULE + "    for: yes\n", 6, "rules[0].for: True is not allowed"),
    "two thresholds": (RULE + "    below: 0\n", 3, "rules[0]: give exactly one of `above` and `below`."),
    "no threshold": ("rules:\n- alert: a\n  direction: e\n", 2, "rules[0]: give exactly one of `above` and `below`."),
    "a threshold that is no number": (
        "rules: [{alert: a, direction: e, above: .nan}]",
        1,
        "rules[0].above: nan is not",
    ),
    "a cosine that no update reaches": (
        "rules:\n- {alert: a, direction: e, above: 5}\n",
        2,
        "rules[0]: `above: 5` is never met, because a reach_cosine lies between -1 and 1.",
    ),
    "a cosine above the highest": (
        "rules: [{alert: a, direction: e, metric: cosine, above: 1}]",
        1,
        "rules[0]: `above: 1` is never met, because a cosine lies between -1 and 1.",
    ),
    "a cosine below the lowest": ("rules: [{alert: a, direction: e, below: -1}]", 1, "`below: -1` is never met"),
    "a cosine that every update is above": ("rules: [{alert: a, direction: e, above: -1.5}]", 1, "always met"),
    "a cosine that every update is below": ("rules: [{alert: a, direction: e, below: 1.5}]", 1, "always met"),
    "a missing name": ("rules: [{direction: e, above: 1}]", 1, "rules[0].alert is missing; give it a value."),
    "an unknown metric": (RULE + "    metric: sine\n", 6, "'sine' is not allowed; it should be 'cosine', 'reach_co"),
    "an unknown action": (RULE + "    actions: [log, page]\n", 6, "rules[0].actions[1]: 'page' is not allowed; it sho"),
    "an unknown severity": (RULE + "    severity: bad\n", 6, "it should be 'info', 'warning' or 'critical'."),
    "an unknown scope": (
        RULE + "    scope: layer\n",
        6,
        "rules[0].scope: 'layer' is not allowed; it should be 'model'",
    ),
    "a scope of an unknown key": (
        RULE + "    scope: {layer: [1]}\n",
        6,
        "it should be 'model', 'any_layer', `layers: [.",
    ),
    "a scope of no modules": (
        RULE + "    scope: {modules: []}\n",
        6,
        "rules[0].scope.modules: [] is not allowed; it sh",
    ),
    "a layer that is no number": (
        RULE + "    scope: {layers: [1, q]}\n",
        6,
        "rules[0].scope.layers[1]: 'q' is not all",
    ),
    "a layer's number in quotes": (
        RULE + "    scope: {layers: ['3']}\n",
        6,
        "rules[0].scope.layers[0]: '3' is not allowed; it should be a layer's number, or in a mod",
    ),
    "a layer that is a truth value": (RULE + "    scope: {layers: [true]}\n", 6, "layers[0]: True is not allowed"),
    "a list that is a word": ("directions: evil\n", 1, "directions: 'evil' is not allowed; it should be a valid list."),
    "a rule that is none": ("rules:\n  - 3\n", 2, "rules[0]: 3 is not allowed; it should be keys such as `alert:`."),
    "rules that are no list": (
        "rules: {alert: a}\n",
        1,
        "rules: {'alert': 'a'} is not allowed; it should be a valid lis",
    ),
    "a key that is no word": ("7: evil\n", 1, "7 is not allowed; it should be a word."),
    "every zero steps": ("\n\nevery: 0\n", 3, "every: 0 is not allowed; it should be greater than or equal to 1."),
    "a guard without a witness": (
        "guard: {}\n",
        1,
        "guard: a guard needs a `witness`, a second direction of the same b",
    ),
    "a guard with a witness of null": ("guard: {witness: ~}\n", 1, "name one, or write `witness: none` to go without."),
    "a witness that is guarded": (
        "guard:\n  directions: [evil, envy]\n  witness: envy\n",
        1,
        "guard: 'envy' is both guarded and the witness; a witness is not to be touched.",
    ),
    "a negative budget": (
        GUARD + "  budget: -0.5\n",
        3,
        "guard.budget: -0.5 is not allowed; it should be greater than or equal to 0.",
    ),
    "a budget without an end": (GUARD + "  budget: .inf\n", 3, "guard.budget: inf is not allowed"),
    "a strength of zero": (
        GUARD + "  strength: 0\n",
        3,
        "guard.strength: 0 is not allowed; it should be greater than 0",
    ),
    "a strength above one": (GUARD + "  strength: 1.5\n", 3, "it should be less than or equal to 1."),
    "a rank of zero": (GUARD + "  mode: subspace\n  rank: 0\n", 4, "guard.rank: 0 is not allowed"),
    "a coefficient of zero": (GUARD + "  mode: preventative\n  coefficient: 0\n", 4, "guard.coefficient: 0 is not all"),
    "an unknown mode": (GUARD + "  mode: both\n", 3, "'both' is not allowed; it should be 'update', 'subspace', 'grad"),
    "an unknown time": (GUARD + "  when: later\n", 3, "it should be 'always' or 'alert'."),
    "an unknown key of a guard": (GUARD + "  dose: 1\n", 3, "guard.dose is not a known key; known are directions, w"),
    "a guarded layer that is none": (GUARD + "  layers: [-1]\n", 3, "guard.layers[0]: -1 is not allowed; it should be"),
    "a witness that is always above": (GUARD + "  witness_above: 1\n", 3, "guard.witness_above: 1 is not allowed"),
    "an unknown on_guard_error": (
        "on_guard_error: log\n",
        1,
        "'log' is not allowed; it should be 'stop' or 'continue'.",
    ),
    "a guard that no rule switches on": (
        GUARD + "  when: alert\n",
        1,
        "`guard: when: alert` needs a rule whose `actions:` name `guard`.",
    ),
    "a rule that switches on no guard": (
        RULE + "    actions: [guard]\n",
        1,
        "rule 'drift' switches on a guard, but there is no `guard:` with `when: alert`; add one.",
    ),
    "a rule that switches on a guard that is on": (
        RULE + "    actions: [guard]\n" + GUARD,
        1,
        "rule 'drift' switches on a guard, but there is no `guard:` with `when: alert`; add one.",
    ),
    "a rule with the name of a guard that fails": (
        RULE.replace("drift", "guard-failed") + GUARD,
        1,
        "'guard-failed' is the alert of a guard that fails, and not for a rule; name it otherwise.",
    ),
    "a rule with the name of the witness's alert": (
        RULE.replace("drift", "guard-bypassed"),
        1,
        "'guard-bypassed' is the alert of a guard with a witness, which is not here; give the rule another name.",
    ),
    "such a rule beside a guard without a witness": (
        RULE.replace("drift", "guard-bypassed") + "guard: {witness: none}\n",
        1,
        "'guard-bypassed' is the alert of a guard with a witness, which is not here; give the rule another name.",
    ),
    "an unknown on_error": (
        "on_error: ignore\n",
        1,
        "on_error: 'ignore' is not allowed; it should be 'log' or 'raise'.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_setting_names_the_line_the_key_the_value_and_what_is_allowed(case: str, tmp_path: Path) -> None:
    text, line, message = CASES[case]
    path = saved(tmp_path, text)
    with pytest.raises(WeightWatchError, match=re.escape(message)) as caught:
        Config.load(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert str(caught.value).endswith(".")
    with pytest.raises(WeightWatchError, match=rf"^config: .*{re.escape(message)}"):
        Config.load(yaml.safe_load(text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"No config at .*nowhere\.yaml .*Give the path"):
        Config.load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(("text", "line"), [("rules: [\n", 2), ("a: b\n c: d\n", 2), ("every: @5\n", 1)])
def test_what_is_no_yaml_is_named_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=rf"weightwatch\.yaml, line {line} is not YAML: "):
        Config.load(saved(tmp_path, text))


def test_bytes_that_are_no_text_are_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "weightwatch.yaml"
    path.write_bytes(b"every: \xff\xfe\n")
    with pytest.raises(WeightWatchError, match=r"weightwatch\.yaml is not YAML"):
        Config.load(path)


def test_yaml_without_keys_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"expected keys such as `directions:`, found \['evil'\]"):
        Config.load(saved(tmp_path, "- evil\n"))


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"line 1: the tag .* is not allowed"):
        Config.load(saved(tmp_path, "directions: !!python/object/apply:os.getcwd []\n"))


def test_two_rules_of_one_name_are_refused() -> None:
    rule = {"alert": "drift", "direction": "evil", "above": 0.1}
    with pytest.raises(WeightWatchError, match=r"rules: two rules have the name 'drift'; give each its own"):
        Config.load({"rules": [rule, {**rule, "above": 0.2}]})


@pytest.mark.parametrize(
    "condition",
    [{"above": -1}, {"above": 0.99}, {"below": 1}, {"metric": "dose", "above": 5}, {"metric": "z", "below": -20}],
)
def test_a_threshold_that_tells_updates_apart_is_taken(condition: dict[str, object]) -> None:
    assert Config.load({"rules": [{"alert": "a", "direction": "e", **condition}]}).rules


@pytest.mark.parametrize(
    ("key", "value", "modes"),
    [
        ("budget", 0.5, {"update", "checkpoint"}),
        ("per", "model", {"update", "gradient", "checkpoint"}),
        ("both_ways", True, {"update", "gradient", "checkpoint"}),
        ("strength", 0.5, {"update", "subspace", "gradient", "checkpoint"}),
        ("rank", 2, {"subspace"}),
        ("coefficient", 2.0, {"preventative"}),
    ],
)
def test_a_key_of_a_guard_without_a_meaning_in_its_mode_is_refused(key: str, value: object, modes: set[str]) -> None:
    for mode in get_args(Mode):
        settings = {"guard": {"witness": "none", "mode": mode, key: value}}
        if mode in modes:
            guard = Config.load(settings).guard
            assert guard is not None
            assert getattr(guard, key) == value
        else:
            with pytest.raises(WeightWatchError, match=rf"`{key}` has no meaning with `mode: {mode}`, but with .*\.$"):
                Config.load(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"witness": "none"},
        {"witness": "envy", "directions": ["evil"], "mode": "checkpoint", "budget": 0.25, "per": "model"},
        {"witness": "org/envy", "mode": "subspace", "rank": 4, "strength": 0.5, "layers": [1, "encoder.block.3"]},
        {"witness": "none", "mode": "gradient", "both_ways": True, "when": "alert"},
        {"witness": "./envy", "mode": "preventative", "coefficient": 3.0, "witness_above": 0.2},
    ],
    ids=lambda settings: str(settings.get("mode", "default")),
)
def test_a_guard_that_is_written_as_resolved_loads_back_equal(settings: dict[str, object], tmp_path: Path) -> None:
    rule = Rule(alert="drift", direction="evil", above=0.1, actions=["log", "guard"])
    by_alert = settings.get("when") == "alert"
    guard = GuardSettings.model_validate(settings)
    config = Config(directions=["evil"], guard=guard, on_guard_error="continue", rules=[rule] if by_alert else [])
    assert Config.load(saved(tmp_path, config.to_yaml())) == config
    assert config.guard is not None
    assert config.guard.witnessed == (None if settings["witness"] == "none" else settings["witness"])


def test_a_setting_that_should_have_keys_and_has_none_is_refused() -> None:
    with pytest.raises(WeightWatchError, match=r"guard: 5 is not allowed; it should be keys such as `directions:`"):
        Config.load({"guard": 5})
