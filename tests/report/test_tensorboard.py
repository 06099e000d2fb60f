import re
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.custom_scalar import layout_pb2

from tests.rules.test_alert import ALERT
from tests.support.models import low_rank, tiny_llama
from tests.support.runs import reading
from weightwatch.config import Config
from weightwatch.reading.reading import Guarded
from weightwatch.record.history import History
from weightwatch.report.base import Outcome, Run
from weightwatch.report.tensorboard import TensorBoard, event_folder


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    found.Reload()
    return found


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, pytest.approx(event.value)) for event in events(folder).Scalars(tag)]


def opened(folder: Path, *names: str, step: int = 0, controls: int = 0, **settings: Any) -> TensorBoard:
    board = TensorBoard(folder)
    kinds = ["behaviour"] * len(names or ("evil",)) + ["control"] * controls
    titles = [*(names or ("evil",)), *(f"control-{number}" for number in range(controls))]
    directions = [low_rank(tiny_llama(), 1, name=name, kind=kind) for name, kind in zip(titles, kinds, strict=True)]
    board.begin(Run(directions, Config.load(settings), step))
    return board


def closed(board: TensorBoard) -> None:
    board.end(Outcome(reading(0, 0.0), {}, []))


def shown(folder: Path, *steps: int, resumed: int = 0, factor: float = 0.1) -> None:
    dashboard = opened(folder, step=resumed)
    for step in steps:
        dashboard.check(reading(step, factor * step, layers=[0.1, 0.2], modules={"q_proj": 0.3}), [], {})
    closed(dashboard)


def test_layers_of_further_stacks_are_curves_that_sort_by_their_index(tmp_path: Path) -> None:
    dashboard = opened(tmp_path)
    made = reading(5, 0.5, layers={3: 0.1, "encoder.block.3": 0.2, "encoder.block.12": 0.3})
    dashboard.check(made, [], {})
    closed(dashboard)
    for layer, value in {"003": 0.1, "encoder.block.003": 0.2, "encoder.block.012": 0.3}.items():
        assert curve(tmp_path, f"evil.layers/cosine/{layer}") == [(5, value)]


def test_every_figure_of_a_reading_is_a_scalar_of_its_step(tmp_path: Path) -> None:
    shown(tmp_path, 0, 5)
    assert curve(tmp_path, "update_norm") == [(0, 1.0), (5, 1.0)]
    for metric in ("cosine", "reach_cosine", "dose"):
        assert curve(tmp_path, f"evil/{metric}") == [(0, 0.0), (5, 0.5)]
    assert curve(tmp_path, "evil.layers/cosine/001") == [(0, 0.2), (5, 0.2)]
    assert curve(tmp_path, "evil.layers/reach_cosine/000") == [(0, 0.1), (5, 0.1)]
    assert curve(tmp_path, "evil.modules/cosine/q_proj") == [(0, 0.3), (5, 0.3)]


def test_what_was_shown_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    dashboard = opened(tmp_path)
    dashboard.check(reading(5, 0.5), [], {})
    assert curve(tmp_path, "evil/cosine") == [(5, 0.5)]
    closed(dashboard)


def test_an_alert_is_a_text_and_a_curve_that_says_whether_it_fires(tmp_path: Path) -> None:
    dashboard = opened(tmp_path)
    for step, fires in ((30, False), (40, True)):
        dashboard.check(reading(step, 0.5), [], {"evil-drift": fires})
    dashboard.alerts([ALERT])
    closed(dashboard)
    assert curve(tmp_path, "alerts/evil-drift") == [(30, 0.0), (40, 1.0)]
    (text,) = events(tmp_path).Tensors("alerts/evil-drift/text_summary")
    assert text.tensor_proto.string_val[0].decode() == ALERT.describe()


def test_a_resumed_run_replaces_the_points_after_its_checkpoint(tmp_path: Path) -> None:
    shown(tmp_path, 0, 5, 10, 15)
    shown(tmp_path, 10, 15, 20, resumed=5, factor=0.2)
    assert curve(tmp_path, "evil/cosine") == [(0, 0.0), (5, 0.5), (10, 2.0), (15, 3.0), (20, 4.0)]


def test_a_fresh_run_in_the_same_folder_replaces_all_points(tmp_path: Path) -> None:
    shown(tmp_path, 0, 5, 10)
    time.sleep(1.1)  # files of one second and one process are read in the order of a counter's digits, 10 before 9
    shown(tmp_path, 0, 7, factor=0.2)
    assert curve(tmp_path, "evil/cosine") == [(0, 0.0), (7, 1.4)]


def images(folder: Path, tag: str = "evil/layers") -> dict[int, tuple[int, int]]:
    """Return the size of each image, by its step."""
    found = EventAccumulator(str(folder), size_guidance={"images": 0})
    found.Reload()
    return {event.step: Image.open(BytesIO(event.encoded_image_string)).size for event in found.Images(tag)}


def test_the_layers_are_drawn_over_the_steps_whenever_the_checks_have_doubled_and_at_the_end(tmp_path: Path) -> None:
    shown(tmp_path, *range(0, 21, 2))  # ten checks after step 0
    assert list(images(tmp_path)) == [8, 16, 0]  # the outcome of these tests is of step 0
    assert all(width > 300 and height > 100 for width, height in images(tmp_path).values())


def test_a_heat_map_shows_what_moved(tmp_path: Path) -> None:
    shown(tmp_path, *range(0, 9, 2))
    found = events(tmp_path)
    assert found.Tags()["images"] == ["evil/layers"]
    image = Image.open(BytesIO(found.Images("evil/layers")[0].encoded_image_string))
    pixels = np.asarray(image.convert("RGB")).astype(int)
    red, blue = (pixels[..., 0] > pixels[..., 2] + 80).sum(), (pixels[..., 2] > pixels[..., 0] + 80).sum()
    assert red > 1000  # the cells; blue is in the colour bar alone
    assert red > 3 * blue


def test_controls_have_no_heat_map(tmp_path: Path) -> None:
    dashboard = opened(tmp_path, controls=1)
    dashboard.check(reading(2, 0.5, layers=[0.1]), [], {})
    closed(dashboard)
    assert events(tmp_path).Tags()["images"] == ["evil/layers"]


def test_the_heat_map_of_a_resumed_run_begins_where_the_record_does(tmp_path: Path) -> None:
    history = History(tmp_path / "record")
    history.folder.mkdir()
    for step in range(1, 4):
        history.add_reading(reading(step, 0.1, layers=[0.1]))
    board = TensorBoard(tmp_path / "events", history)
    board.begin(Run([low_rank(tiny_llama(), 1)], Config(), 3))
    board.check(reading(4, 0.1, layers=[0.2]), [], {})
    assert list(images(tmp_path / "events")) == [4]  # the fourth check
    closed(board)


def test_a_damaged_record_costs_a_resumed_run_the_earlier_columns_alone(tmp_path: Path) -> None:
    history = History(tmp_path / "record")
    history.folder.mkdir()
    (history.folder / "readings.jsonl").write_text("{}\n")
    board = TensorBoard(tmp_path / "events", history)
    board.begin(Run([low_rank(tiny_llama(), 1)], Config(), 3))
    board.check(reading(4, 0.1, layers=[0.2]), [], {})
    closed(board)
    assert curve(tmp_path / "events", "evil/cosine") == [(4, 0.1)]
    assert len(images(tmp_path / "events")) == 1


def layout(folder: Path) -> dict[str, dict[str, Any]]:
    (event,) = events(folder).Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in found.category
    }


def test_the_layout_gathers_directions_layers_and_modules(tmp_path: Path) -> None:
    dashboard = opened(tmp_path, "evil", "good (v2)", controls=1)
    dashboard.check(reading(5, 0.5, z=3.0, layers=[0.1], modules={"q_proj": 0.3}), [], {})
    dashboard.alerts([ALERT])
    closed(dashboard)
    tags = events(tmp_path).Tags()["scalars"]
    found = layout(tmp_path)
    assert list(found) == ["directions", "evil", "good (v2)", "control-0"]

    def drawn(category: str, chart: str) -> list[str]:
        return [tag for tag in tags if any(re.search(pattern, tag) for pattern in found[category][chart])]

    assert drawn("directions", "cosine") == ["evil/cosine"]
    assert drawn("directions", "z") == ["evil/z"]
    assert drawn("evil", "layers: cosine") == ["evil.layers/cosine/000"]
    assert drawn("evil", "layers: reach_cosine") == ["evil.layers/reach_cosine/000"]
    assert drawn("evil", "modules: cosine") == ["evil.modules/cosine/q_proj"]
    (pattern,) = found["good (v2)"]["layers: cosine"]
    assert re.search(pattern, "good (v2).layers/cosine/000")


def test_there_is_a_chart_of_z_only_where_there_are_controls(tmp_path: Path) -> None:
    closed(opened(tmp_path))
    assert list(layout(tmp_path)["directions"]) == ["cosine", "reach_cosine", "dose"]


def test_what_a_guard_took_back_is_a_curve_on_charts_of_its_own(tmp_path: Path) -> None:
    dashboard = opened(tmp_path, guard={"witness": "none"})
    for step in (0, 5):
        dashboard.check(replace(reading(step, 0.5), guard=Guarded(step, {"evil": 0.1 * step}, 0.02 * step)), [], {})
    closed(dashboard)
    assert curve(tmp_path, "evil/dose_taken_back") == [(0, 0.0), (5, 0.5)]
    assert curve(tmp_path, "guard/share") == [(0, 0.0), (5, 0.1)]
    charts = layout(tmp_path)["directions"]
    assert list(charts) == ["cosine", "reach_cosine", "dose", "dose taken back", "share taken back"]
    for chart, tag in (("dose taken back", "evil/dose_taken_back"), ("share taken back", "guard/share")):
        (pattern,) = charts[chart]
        assert re.search(pattern, tag)


@pytest.mark.parametrize("shared", [False, True])
def test_events_have_a_folder_of_their_own(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if shared:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    wanted = tmp_path / "logs" / "run-weightwatch" if shared else tmp_path / "run" / "runs" / "weightwatch"
    assert event_folder(tmp_path / "run") == wanted


def test_a_name_in_an_alert_makes_no_link_picture_or_tag(tmp_path: Path) -> None:
    dashboard = opened(tmp_path)
    hostile = replace(ALERT, direction="![x](http://x/) <b>evil</b>")
    dashboard.check(reading(40, 0.3), [hostile], {})
    closed(dashboard)
    (text,) = events(tmp_path).Tensors("alerts/evil-drift/text_summary")
    shown = markdown_to_safe_html(text.tensor_proto.string_val[0])
    assert "<img" not in shown
    assert "<b>" not in shown
    assert "![x](http://x/) &lt;b&gt;evil&lt;/b&gt; reach_cosine is" in shown
