"""The page of the tab, driven in a headless Chromium, in front of a TensorBoard in a process of its own."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from benchmarks.browser import MISSING, Tab, chromium, tensorboard
from tests.support.references import LIKE
from tests.support.runs import reading, score
from weightwatch.config import Config
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.rules.manager import RuleManager
from weightwatch.setup import SETUP, Setup

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

HOSTILE = "<img src=x onerror=\"document.title='run'\">\x1b[2J"
KINDS = ("q_proj", "mlp.up_proj", HOSTILE)


RULES = [
    {"alert": "drift", "direction": "evil", "above": 0.25},
    {"alert": "parts", "direction": "evil", "above": 0.9, "scope": "any_layer"},
]


def check(step: int, value: float) -> Reading:
    """A check whose layers move by one, two and minus three times the model's value, beside two controls."""
    layers = {number: score(factor * value, z=100 * factor * value) for number, factor in enumerate((1, 2, -3))}
    modules = {kind: score(factor * value) for kind, factor in zip(KINDS, (1, -2, 0.5), strict=True)}
    evil = replace(reading(step, value, z=100 * value)["evil"], layers=layers, modules=modules)
    still = replace(evil, **vars(score(0.01)))
    controls = {"style": still, "shuffled": replace(still, reach_cosine=-0.01)}
    checkpoint = f"checkpoint-{step}" if step and step % 20 == 0 else None
    time = f"2026-01-01T00:00:{step % 60:02d}.000+00:00"
    return Reading(step, time, 1.0, {"evil": evil, "calm": still, HOSTILE: still, **controls}, checkpoint)


def write(folder: Path, values: list[float]) -> History:
    """Write the record of a run, with its alerts."""
    history = History(folder / "weightwatch")
    history.folder.mkdir(parents=True)
    config = Config.load({"directions": ["evil"], "rules": RULES})
    setup = Setup.model_validate({**LIKE, "controls": {"style": "1", "shuffled": "2"}})
    (history.folder / "config.yaml").write_text(config.to_yaml())
    (history.folder / SETUP).write_text(setup.model_dump_json())
    manager = RuleManager(config.rules, lambda _: True)
    for number, value in enumerate([0.0, *values]):
        made = check(10 * number, value)
        history.add_reading(made)
        for alert in manager.apply(made):
            history.add_alert(alert)
    return history


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write(folder / "poisoned", [0.1, 0.2, 0.3])
    write(folder / "benign", [0.05, 0.01, -0.02])
    return folder


@pytest.fixture(scope="module")
def address(log_dir: Path) -> Iterator[str]:
    with tensorboard("--logdir", log_dir) as address:
        yield address


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def tab(driver: Any, address: str) -> Tab:
    return Tab(driver, address)


def values(tab: Tab, name: str) -> list[float]:
    (line,) = (trace for trace in tab.plot("#lines") if trace["name"] == name)
    return line["y"]


def maps(tab: Tab) -> list[str]:
    return [each.text for each in tab.all("#maps figcaption")]


def test_the_page_shows_both_runs_and_breaks_no_policy(tab: Tab) -> None:
    assert values(tab, "poisoned") == pytest.approx([0.1, 0.2, 0.3])
    assert values(tab, "benign") == pytest.approx([0.05, 0.01, -0.02])
    assert maps(tab) == ["benign: 3 layers", "poisoned: 3 layers"]
    assert "poisoned: step 30, 4 checks" in tab.text("#status")
    assert tab.complaints() == []


def test_the_chart_has_the_null_band_the_threshold_the_alert_and_the_checkpoints(tab: Tab) -> None:
    traces = {trace["name"]: trace for trace in tab.plot("#lines")}
    assert traces["null band: range of the controls of poisoned"]["y"] == pytest.approx([-0.01] * 3)
    assert traces["checkpoints of poisoned"]["x"] == [20]
    assert traces["alerts"]["x"] == [30]
    assert traces["alerts"]["text"] == ["ALERT drift (poisoned)"]
    shown = tab.text("#lines")
    assert "drift: above 0.25" in shown
    assert "ALERT drift (poisoned)" in shown
    assert "poisoned: drift (warning) at step 30: evil reach_cosine is 0.3 in model" in tab.text("#alerts")
    assert "parts (reach cosine above 0.9)" in tab.text("#alerts")


def test_runs_are_told_apart_without_colour(tab: Tab) -> None:
    lines = [trace for trace in tab.plot("#lines") if trace["name"] in ("benign", "poisoned")]
    assert len({trace["line"]["dash"] for trace in lines}) == 2
    assert "−0.9000" in tab.text("#maps")  # the largest value is written into its map, with its sign


def test_a_run_is_picked_and_left_out(tab: Tab) -> None:
    tab.tick("benign")
    tab.wait(lambda: maps(tab) == ["poisoned: 3 layers"])
    assert [trace["name"] for trace in tab.plot("#lines") if trace["name"] in ("benign", "poisoned")] == ["poisoned"]
    tab.tick("poisoned")
    tab.wait(lambda: "Choose a run above." in tab.text("#empty"))
    tab.tick("benign")
    tab.wait(lambda: maps(tab) == ["benign: 3 layers"])


def test_pointing_at_a_cell_tells_its_layer_step_value_and_z(tab: Tab) -> None:
    area = tab.all("#maps .map .nsewdrag")[1]
    size = area.size
    # the last of three columns, the first of three rows; offsets are from the centre
    ActionChains(tab.driver).move_to_element_with_offset(area, size["width"] // 3, -size["height"] // 3).perform()
    told = tab.wait(lambda: tab.all("#tip") and tab.text("#tip"))
    assert told.splitlines() == ["poisoned", "layer 0", "step 30: reach cosine +0.3000", "z +30.00"]
    assert tab.text("#cell") == "poisoned, layer 0, step 30: reach cosine +0.3000, z +30.00"


def test_the_keyboard_reaches_every_control_and_every_cell(tab: Tab) -> None:
    reached = []
    tab.script("document.querySelector('.runs input').focus()")
    while reached.count("map") < 2:
        reached.append(tab.script("const at = document.activeElement; return at.id || at.value || at.classList[1]"))
        ActionChains(tab.driver).send_keys(Keys.TAB).perform()
    assert reached == ["benign", "poisoned", "direction", "metric", "rows", "order", "filter", "dark", "map", "map"]
    tab.all("#maps .map")[1].send_keys(Keys.ARROW_DOWN)
    assert tab.text("#cell") == "poisoned, layer 0, step 30: reach cosine +0.3000, z +30.00"
    tab.all("#maps .map")[1].send_keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert tab.text("#cell") == "poisoned, layer 1, step 20: reach cosine +0.4000, z +40.00"


def test_another_direction_and_another_figure_are_drawn(tab: Tab) -> None:
    assert tab.options("direction")[:2] == ["evil", "calm"]
    assert tab.options("direction")[-2:] == ["style", "shuffled"]
    tab.choose("direction", "calm")
    assert values(tab, "poisoned") == pytest.approx([0.01] * 3)
    assert "No rule is about this direction." in tab.text("#alerts")
    tab.choose("direction", "evil")
    tab.choose("metric", "z")
    assert values(tab, "poisoned") == pytest.approx([10, 20, 30])
    assert "evil: z by layer" in tab.text("h2")


def test_kinds_of_module_are_sorted_by_size_and_filtered(tab: Tab) -> None:
    tab.tick("benign")
    tab.choose("rows", "modules")
    axis = "return document.querySelector('.map').layout.yaxis.ticktext"
    shown = "&lt;img src=x onerror=\"document.title='run'\"&gt;\\x1b[2J"
    assert tab.script(axis) == ["q_proj", "mlp.up_proj", shown]
    tab.choose("order", "size")
    assert tab.script(axis) == ["mlp.up_proj", "q_proj", shown]
    tab.one("#filter").send_keys("Proj")
    tab.wait(lambda: maps(tab) == ["poisoned: 2 of 3 kinds of module"])
    assert [row[1] for row in tab.rows()] == ["mlp.up_proj", "q_proj"]
    assert tab.rows()[0] == ["poisoned", "mlp.up_proj", "−0.6000", "30", "−0.6000"]
    tab.one("#filter").send_keys("x")
    tab.wait(lambda: "has “Projx” in its name" in maps(tab)[0])


def test_names_with_tags_and_control_characters_are_shown_and_not_run(tab: Tab) -> None:
    text = HOSTILE.replace("\x1b", "\\x1b")
    assert text in tab.options("direction")
    tab.choose("direction", HOSTILE)
    tab.choose("rows", "modules")
    assert text in tab.text("h2")
    assert text in [row[1] for row in tab.rows()]
    assert tab.all("img") == []
    assert tab.script("return document.title") == "WeightWatch"
    assert tab.complaints() == []


def test_dark_follows_tensorboard_until_the_button_is_pressed(tab: Tab, tmp_path: Path) -> None:
    theme = "return document.documentElement.dataset.theme"
    assert tab.script(theme) == "light"
    page = "return getComputedStyle(document.body).backgroundColor"
    light = tab.script(page)
    tab.script("window.parent.document.body.classList.add('dark-mode')")
    tab.wait(lambda: tab.script(theme) == "dark")
    assert tab.script(page) != light
    assert tab.one("#dark").get_attribute("aria-pressed") == "true"
    tab.one("#dark").click()
    assert tab.script(theme) == "light"
    tab.script("window.parent.document.body.classList.remove('dark-mode')")
    assert tab.script(page) == light
    tab.one("#dark").click()
    tab.wait(lambda: tab.script("return document.querySelector('#lines').layout.font.color") == "#e6edf3")
    tab.driver.switch_to.default_content()
    assert tab.driver.save_screenshot(str(tmp_path / "dark.png"))
    assert (tmp_path / "dark.png").stat().st_size > 20_000


def test_the_page_updates_while_training_goes_on(driver: Any, tmp_path: Path) -> None:
    history = write(tmp_path / "run", [0.1])
    with tensorboard("--logdir", tmp_path / "run") as address:
        tab = Tab(driver, address)
        assert values(tab, "run") == pytest.approx([0.1])
        history.add_reading(check(20, 0.2))
        tab.wait(lambda: len(values(tab, "run")) == 2)
        assert "run: step 20, 3 checks" in tab.text("#status")
        with (history.folder / "readings.jsonl").open("a") as file:
            file.write('{"step": 30, "directions"')  # cut off in mid-line: not there yet
            file.flush()
            history.add_reading(check(30, -0.4))
        tab.wait(lambda: len(values(tab, "run")) == 3)
        assert values(tab, "run")[2] == pytest.approx(-0.4)


def test_a_record_in_several_versions_with_nan_and_a_damaged_line_shows_what_it_has(
    driver: Any, tmp_path: Path
) -> None:
    history = write(tmp_path / "run", [0.1])
    old = {"step": 20, "directions": {"evil": {"reach_cosine": 0.2, "layers": {"0": {"reach_cosine": float("nan")}}}}}
    with (history.folder / "readings.jsonl").open("a") as file:
        file.write(f"{{damaged\n{json.dumps(old)}\n")
    history.add_reading(check(30, 0.3))
    (history.folder / "config.yaml").write_text("settings: of another version")
    with tensorboard("--logdir", tmp_path) as address:
        tab = Tab(driver, address)
        assert values(tab, "run") == pytest.approx([0.1, 0.2, 0.3])
        assert "readings.jsonl, line 3 is left out" in tab.text("#status")
        assert "Its settings can't be read, so no thresholds are shown." in tab.text("#status")
        tab.one("#maps .map").send_keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
        assert tab.text("#cell") == "run, layer 0, step 20: reach cosine not recorded, z not recorded"


def test_a_folder_of_events_says_which_command_shows_the_record(driver: Any, tmp_path: Path) -> None:
    write(tmp_path / "my run", [0.1])
    events = tmp_path / "my run" / "runs" / "weightwatch"
    events.mkdir(parents=True)
    (events / "events.out.tfevents.1.host").touch()
    with tensorboard("--logdir", tmp_path / "my run" / "runs") as address:
        tab = Tab(driver, address)
        assert "The record of this run is not in the log dir" in tab.text("#empty")
        assert f"tensorboard --logdir '{tmp_path / 'my run'}'" in tab.text("#empty pre")


def test_a_log_dir_without_a_run_says_what_to_do_and_shows_a_run_when_it_comes(driver: Any, tmp_path: Path) -> None:
    with tensorboard("--logdir", tmp_path) as address:
        tab = Tab(driver, address)
        tab.wait(lambda: "No run of weightwatch" in tab.text("#empty"))
        assert "tensorboard --logdir <output_dir>" in tab.text("#empty")
        (tmp_path / "run" / "weightwatch").mkdir(parents=True)
        (tmp_path / "run" / "weightwatch" / "run.json").write_text("{}")
        tab.wait(lambda: "run has no check yet" in tab.text("#empty"))
        for number, value in enumerate([0.0, 0.1]):
            History(tmp_path / "run" / "weightwatch").add_reading(check(10 * number, value))
        tab.wait(lambda: tab.all("#lines .main-svg"))
        assert values(tab, "run") == pytest.approx([0.1])
