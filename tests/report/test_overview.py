from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.support.references import record
from tests.support.runs import reading
from weightwatch.record.history import History
from weightwatch.record.recorded_run import RecordedRun
from weightwatch.report.overview import draw


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    found: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: object, **settings: object) -> None:
        found.append(figure)
        save(figure, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", saved)
    return found


def test_runs_are_lines_of_one_chart_and_each_has_a_heat_map(tmp_path: Path, drawn: list[Figure]) -> None:
    rule = {"alert": "drift", "direction": "evil", "above": 0.15}
    runs = []
    for number, name in enumerate(("first", "se$cond$")):
        folder = record(tmp_path / name, [0.1, 0.2], number, rules=[rule])
        History(folder / "weightwatch").add_reading(reading(30, 0.3, layers=[0.3 + number, -0.1]))
        runs.append(RecordedRun.of(folder))
    assert draw(runs, tmp_path / "runs.png") == tmp_path / "runs.png"
    assert (tmp_path / "runs.png").stat().st_size > 10_000
    curves, *maps = drawn[0].axes[:3]
    assert [line.get_ydata().tolist() for line in curves.lines[:2]] == [[0.1, 0.2, 0.3]] * 2
    assert list(curves.lines[2].get_ydata()) == [0.15, 0.15]
    images = [axes.get_images()[0] for axes in maps]
    assert [image.get_array().tolist() for image in images] == [[[0.3], [-0.1]], [[1.3], [-0.1]]]
    assert [image.get_clim() for image in images] == [(-1.3, 1.3)] * 2
    told = drawn[0].get_suptitle()
    assert told.startswith("first: No alert. It was recorded up to step 30, in 4 checks.\n")
    assert r"se\$cond\$" in told


def test_a_run_without_figures_of_layers_is_drawn_without_a_heat_map(tmp_path: Path, drawn: list[Figure]) -> None:
    draw([RecordedRun.of(record(tmp_path / "run", [0.1]))], tmp_path / "run.svg")
    assert [len(axes.get_images()) for axes in drawn[0].axes] == [0, 0]
    assert (tmp_path / "run.svg").read_text().startswith("<?xml")
