import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rules.test_alert import ALERT
from tests.support.references import BASELINE, LIKE
from tests.support.runs import reading
from weightwatch.config import Config
from weightwatch.record.history import History
from weightwatch.report.charts import MOST
from weightwatch.setup import SETUP, Setup
from weightwatch.tensorboard_plugin.library import Library
from weightwatch.tensorboard_plugin.log_dirs import LogDirs
from weightwatch.tensorboard_plugin.view import figures, overview


def watched(folder: Path, values: list[float]) -> Library:
    """A run with two controls, whose figures are a tenth and minus a tenth of those of the direction."""
    history = History(folder / "run" / "weightwatch")
    for number, value in enumerate([0.0, *values]):
        made = reading(5 * number, value, layers=[value, -2 * value], modules={"q_proj": value}, z=40 * value)
        up, down = (reading(5 * number, sign * value / 10)["evil"] for sign in (1, -1))
        directions = {**made.directions, "style": up, "shuffled": down}
        checkpoint = f"checkpoint-{5 * number}" if number % 2 else None
        history.add_reading(type(made)(made.step, made.time, 1.0, directions, checkpoint))
    setup = Setup.model_validate({**LIKE, "controls": {"style": "1", "shuffled": "2"}})
    (history.folder / SETUP).write_text(setup.model_dump_json())
    rules = [
        {"alert": "drift", "direction": "evil", "above": 0.25},
        {"alert": "anywhere", "direction": "evil", "above": 0.5, "scope": "any_layer"},
    ]
    (history.folder / "config.yaml").write_text(Config.load({"directions": ["evil"], "rules": rules}).to_yaml())
    library = Library(LogDirs({folder: ""}))
    library.update()
    return library


def seen(library: Library, direction: str = "evil", metric: Any = "reach_cosine") -> dict[str, Any]:
    found = figures(library.runs["run"], direction, metric)
    return json.loads(json.dumps(found, allow_nan=False))


def table(found: dict[str, Any], key: str = "values") -> np.ndarray:
    values = np.frombuffer(b64decode(found[key]), dtype="<f4")
    return values.reshape(len(found["parts"]), len(found["steps"]))


def test_the_line_has_all_checks_but_step_0_the_range_of_the_controls_and_the_checkpoints(tmp_path: Path) -> None:
    found = seen(watched(tmp_path, [0.1, 0.2]))
    assert found["line"] == {
        "steps": [5, 10],
        "values": pytest.approx([0.1, 0.2]),
        "checkpoints": ["checkpoint-5", ""],
        "low": pytest.approx([-0.01, -0.02]),
        "high": pytest.approx([0.01, 0.02]),
    }
    assert found["checkpoints"] == [{"step": 5, "name": "checkpoint-5"}]


@pytest.mark.parametrize(("direction", "metric"), [("style", "reach_cosine"), ("evil", "dose"), ("evil", "z")])
def test_there_is_no_band_where_it_would_mean_nothing(tmp_path: Path, direction: str, metric: str) -> None:
    found = seen(watched(tmp_path, [0.1]), direction, metric)
    assert found["line"]["low"] is found["line"]["high"] is None


def test_the_maps_have_value_and_z_of_each_part_and_its_largest_value(tmp_path: Path) -> None:
    layers = seen(watched(tmp_path, [0.3, 0.2]))["layers"]
    assert (layers["parts"], layers["steps"]) == (["0", "1"], [5, 10])
    assert table(layers) == pytest.approx(np.array([[0.3, 0.2], [-0.6, -0.4]]))
    assert layers["z"] is None  # layers of these readings have none
    assert layers["largest"] == pytest.approx([0.3, -0.6])
    assert layers["largest_at"] == [5, 5]
    assert layers["newest"] == pytest.approx([0.2, -0.4])
    assert seen(watched(tmp_path / "more", [0.1]))["modules"]["parts"] == ["q_proj"]


def test_of_many_checks_the_largest_of_each_stretch_is_drawn(tmp_path: Path) -> None:
    values = [0.001] * (3 * MOST)
    values[1000], values[1500] = 0.9, -0.8
    found = seen(watched(tmp_path, values))
    assert (found["checks"], found["most"]) == (3 * MOST, MOST)
    for part in (found["line"], found["layers"]):
        assert len(part["steps"]) == MOST
        assert {5 * 1001, 5 * 1501} <= set(part["steps"])
    assert len(found["checkpoints"]) <= MOST


def test_a_direction_that_is_not_watched_has_no_values(tmp_path: Path) -> None:
    found = seen(watched(tmp_path, [0.1]), "unknown")
    assert found["line"]["values"] == [None]
    assert found["layers"]["parts"] == []


def test_a_run_without_a_check_is_shown(tmp_path: Path) -> None:
    library = watched(tmp_path, [])
    assert seen(library)["line"]["steps"] == []
    (tmp_path / "run" / "weightwatch" / "readings.jsonl").write_text("")
    (tmp_path / "run" / "weightwatch" / "run.json").write_text("{}")
    library.update()
    (run,) = overview(library)["runs"]
    assert (run["checks"], run["step"], run["share"], run["directions"]) == (0, None, 1.0, [])
    assert seen(library)["layers"]["parts"] == []


def test_the_overview_has_the_runs_with_their_rules_and_alerts(tmp_path: Path) -> None:
    library = watched(tmp_path, [0.1, 0.2])
    History(tmp_path / "run" / "weightwatch").add_alert(ALERT)
    found = json.loads(json.dumps(overview(library), allow_nan=False))
    assert found["searched"]
    assert found["log_dirs"] == [str(tmp_path)]
    (run,) = found["runs"]
    assert (run["name"], run["shown"], run["checks"], run["step"], run["share"]) == ("run", True, 3, 10, 1.0)
    assert run["directions"] == ["evil", "style", "shuffled"]
    assert run["controls"] == ["style", "shuffled"]
    assert [(rule["alert"], rule["threshold"], rule["whole"]) for rule in run["rules"]] == [
        ("drift", 0.25, True),
        ("anywhere", 0.5, False),
    ]
    assert [(alert["step"], alert["text"]) for alert in run["alerts"]] == [(ALERT.step, ALERT.describe())]
    assert run["notes"] == []


def test_a_threshold_over_a_baseline_is_not_in_the_chart(tmp_path: Path) -> None:
    over = {"alert": "over", "direction": "evil", "metric": "over_baseline", "above": 3.0, "baseline": BASELINE}
    library = watched(tmp_path, [0.1])
    (tmp_path / "run" / "weightwatch" / "config.yaml").write_text(Config.load({"rules": [over]}).to_yaml())
    (rule,) = overview(library)["runs"][0]["rules"]
    assert (rule["metric"], rule["whole"]) == ("over_baseline", False)


def test_settings_of_another_version_are_owned_up_to(tmp_path: Path) -> None:
    library = watched(tmp_path, [0.1])
    (tmp_path / "run" / "weightwatch" / "config.yaml").write_text("other: 1")
    (run,) = overview(library)["runs"]
    assert run["notes"] == ["Its settings can't be read, so no thresholds are shown."]
    assert run["rules"] == []
