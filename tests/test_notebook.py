"""The notebook of the docs, cell by cell."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-run.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_its_data_to_an_alert_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    (alert, *_) = names["monitor"].session.alerts
    assert (alert.alert, alert.direction, alert.state) == ("evil-drift", "evil", "firing")
    assert 20 <= alert.step < 120
    assert "evil-drift (warning) at step" in capsys.readouterr().out
    lines = {line.get_label(): line for line in names["plt"].gca().lines}
    assert max(lines["evil"].get_ydata()) > names["rule"]["above"] > max(lines["style"].get_ydata())
    assert [reading["step"] for reading in names["readings"]] == list(range(0, 130, 10))
