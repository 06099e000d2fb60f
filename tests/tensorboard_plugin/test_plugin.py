"""The plugin as TensorBoard loads it, and its routes; test_page.py drives the page in a browser."""

import json
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from tensorboard.plugins.base_plugin import TBContext
from werkzeug.test import Client, TestResponse

from tests.support.references import record
from tests.support.runs import reading
from weightwatch.record.history import History
from weightwatch.tensorboard_plugin.plugin import WeightWatchPlugin


def plugin(log_dir: Path) -> WeightWatchPlugin:
    return WeightWatchPlugin(TBContext(flags=Namespace(logdir=str(log_dir), logdir_spec="")))


def get(loaded: WeightWatchPlugin, route: str, **query: str) -> TestResponse:
    return Client(loaded.get_plugin_apps()[route]).get(route, query_string=query)


def test_tensorboard_finds_the_plugin_by_the_package_s_entry_point() -> None:
    (found,) = (each for each in entry_points(group="tensorboard_plugins") if each.name == "weightwatch")
    assert found.load() is WeightWatchPlugin
    assert WeightWatchPlugin.plugin_name == "weightwatch"


def test_every_tensorboard_loads_it_so_it_needs_no_torch() -> None:
    code = "import sys, weightwatch.tensorboard_plugin.plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tab_is_there_where_it_has_something_to_show(tmp_path: Path) -> None:
    assert plugin(tmp_path).is_active()  # nothing of anybody is there yet: it says what to do
    (tmp_path / "events.out.tfevents.1").touch()
    assert not plugin(tmp_path).is_active()
    record(tmp_path / "run", [0.1])
    assert plugin(tmp_path).is_active()


def test_the_tab_is_there_to_say_where_the_record_is(tmp_path: Path) -> None:
    (tmp_path / "runs" / "weightwatch").mkdir(parents=True)
    (tmp_path / "runs" / "weightwatch" / "events.out.tfevents.1").touch()
    assert plugin(tmp_path / "runs").is_active()


def test_the_page_comes_out_of_the_packages(tmp_path: Path) -> None:
    loaded = plugin(tmp_path)
    assert loaded.frontend_metadata().tab_name == "WeightWatch"
    module = get(loaded, loaded.frontend_metadata().es_module_path)
    assert module.content_type.startswith("text/javascript")
    assert "export async function render()" in module.text
    assert "http" not in module.text.replace("https://", "http://").replace("http_", "")
    plotly = get(loaded, "/plotly.min.js")
    assert "plotly.js v" in plotly.text[:300]
    for route in loaded.get_plugin_apps():
        assert route in ("/runs", "/figures") or get(loaded, route).status_code == 200


def test_figures_are_those_of_a_run_that_was_found(tmp_path: Path) -> None:
    record(tmp_path / "run", [0.1, 0.2])
    loaded = plugin(tmp_path)
    assert loaded.is_active()
    loaded._library.update()
    (run,) = get(loaded, "/runs").json["runs"]
    found = get(loaded, "/figures", run=run["name"], direction="evil", metric="cosine").json
    assert found["line"]["values"] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", "outside", "%2e%2e/outside"])
def test_no_name_leads_out_of_the_log_dir(tmp_path: Path, name: str) -> None:
    record(tmp_path / "outside", [0.1])
    record(tmp_path / "log" / "run", [0.1])
    loaded = plugin(tmp_path / "log")
    assert loaded.is_active()
    assert get(loaded, "/figures", run=name, direction="evil", metric="cosine").status_code == 404


def test_a_figure_that_is_none_is_refused_with_those_there_are(tmp_path: Path) -> None:
    record(tmp_path / "run", [0.1])
    loaded = plugin(tmp_path)
    assert loaded.is_active()
    refused = get(loaded, "/figures", run="run", direction="evil", metric="<b>")
    assert refused.status_code == 400
    assert "metric is one of cosine, reach_cosine, dose, z, over_controls." in refused.text


def test_nan_in_a_record_is_valid_json_for_a_browser(tmp_path: Path) -> None:
    History(tmp_path / "weightwatch").append(
        "readings.jsonl", {**reading(5, 0.1).to_json(), "directions": {"evil": {"cosine": float("nan")}}}
    )
    loaded = plugin(tmp_path)
    loaded._library.update()
    answer = get(loaded, "/figures", run=tmp_path.name, direction="evil", metric="cosine")
    assert json.loads(answer.text, parse_constant=pytest.fail)["line"]["values"] == [None]
