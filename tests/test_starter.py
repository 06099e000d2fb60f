import ast
import json
from pathlib import Path

import pytest

from weightwatch import Config, Direction
from weightwatch.starter import schema, schema_text, script, settings
from weightwatch.vectors.catalog import PACKAGED


def test_the_settings_load_and_have_a_rule_for_each_behaviour(tmp_path: Path) -> None:
    found = [(name, Direction.load(name)) for name in ("evil", "sycophancy", "style")]
    (tmp_path / "weightwatch.yaml").write_text(settings(found, [], 25))
    made = Config.load(tmp_path / "weightwatch.yaml")
    assert (made.directions, made.every) == (["evil", "sycophancy", "style"], 25)
    assert [(rule.direction, rule.metric, rule.labels) for rule in made.rules] == [
        (name, "reach_cosine", {"threshold": "a guess, not calibrated"}) for name in ("evil", "sycophancy")
    ]
    text = (tmp_path / "weightwatch.yaml").read_text()
    assert text.count("\n#") > 3
    before, _, commented = text.partition("# notify:")
    (tmp_path / "weightwatch.yaml").write_text(before + "notify:" + commented.replace("\n#", "\n"))
    assert Config.load(tmp_path / "weightwatch.yaml").notify[0].name == "webhook SLACK_WEBHOOK"


@pytest.mark.parametrize(("shuffled", "metric"), [(False, "reach_cosine"), (True, "over_controls")])
def test_with_a_bank_of_controls_the_rule_is_over_them(shuffled: bool, metric: str, tmp_path: Path) -> None:
    control = Direction.load(PACKAGED / "style").with_card(shuffled=shuffled)
    controls = [(f"c{number}", control) for number in range(5)]
    (tmp_path / "weightwatch.yaml").write_text(settings([("evil", Direction.load(PACKAGED / "evil"))], controls, 50))
    made = Config.load(tmp_path / "weightwatch.yaml")
    assert made.controls == ["c0", "c1", "c2", "c3", "c4"]
    assert [rule.metric for rule in made.rules] == [metric]


def test_without_controls_the_settings_leave_them_to_those_beside_the_direction(tmp_path: Path) -> None:
    (tmp_path / "weightwatch.yaml").write_text(settings([("evil", Direction.load(PACKAGED / "evil"))], [], 50))
    assert "controls" not in Config.load(tmp_path / "weightwatch.yaml").model_fields_set


@pytest.mark.parametrize("model", ["org/base", "a folder/with 'quotes'"])
def test_the_script_is_python_that_names_the_model(model: str) -> None:
    strings = [node.value for node in ast.walk(ast.parse(script(model))) if isinstance(node, ast.Constant)]
    assert model in strings
    assert "weightwatch.yaml" in strings


def test_the_schema_has_every_key_of_the_settings_with_the_names_that_yaml_has() -> None:
    found = schema()
    assert set(found["properties"]) == set(Config.model_fields)
    assert "for" in found["$defs"]["Rule"]["properties"]
    assert found["additionalProperties"] is False
    assert json.loads(schema_text()) == found
