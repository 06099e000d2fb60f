"""Plots, looked at through their pixels and their text."""

import re
from math import nan
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from weightwatch.report.plots import bars, curves, heat_map
from weightwatch.vectors import WeightWatchError


def colours(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB")).astype(int).reshape(-1, 3)


def share(file: Path, red: bool) -> float:
    """The share of pixels that are clearly red, or clearly blue."""
    pixels = colours(file)
    difference = pixels[:, 0] - pixels[:, 2]
    return float(((difference if red else -difference) > 60).mean())


def test_positive_cosines_are_red_and_negative_ones_blue(tmp_path: Path) -> None:
    names = ["evil", "sycophancy", "style"]
    drawn = {}
    for sign in (1, -1):
        values = [[1.0 if i == j else sign * 0.4 for j in range(3)] for i in range(3)]
        drawn[sign] = heat_map(names, values, tmp_path / f"{sign}.png")
    assert share(drawn[1], red=True) > share(drawn[1], red=False) + 0.2
    assert share(drawn[-1], red=False) > share(drawn[-1], red=True) + 0.2


def test_nothing_in_common_is_neither(tmp_path: Path) -> None:
    file = heat_map(["a", "b"], [[1.0, nan], [nan, 1.0]], tmp_path / "a.png")
    assert share(file, red=True) == pytest.approx(share(file, red=False), abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_labels_and_numbers_are_in_the_picture(count: int, tmp_path: Path) -> None:
    names = [f"direction-{i}" for i in range(count)]
    values = [[1.0 if i == j else 0.017 for j in range(count)] for i in range(count)]
    text = heat_map(names, values, tmp_path / "a.svg").read_text()
    assert all(text.count(f"<!-- {name} -->") == 2 for name in names)
    assert count == 1 or text.count("<!-- 0.017 -->") == count * (count - 1)


def test_each_line_has_a_colour_and_a_name_in_the_legend(tmp_path: Path) -> None:
    lines = {"behaviour": [0.0, 0.5, 1.0], "opposite": [1.0, 0.5, 0.0]}
    text = curves([-1, 0, 1], lines, tmp_path / "a.svg", ("k", "share of items"), "evil").read_text()
    for word in ("behaviour", "opposite", "k", "share of items", "evil"):
        assert f"<!-- {word} -->" in text
    assert "#1f77b4" in text
    assert "#ff7f0e" in text


def test_bars_are_as_high_as_their_values(tmp_path: Path) -> None:
    def blue(*values: float) -> float:
        named = dict(zip("abc", values, strict=True))
        return share(bars(named, tmp_path / "a.png", ("layer", "‖w‖"), "evil"), red=False)

    assert blue(1.0, 1.0, 1.0) == pytest.approx(3 * blue(0.0, 1.0, 0.0), rel=0.02)


def test_an_unknown_format_or_place_is_an_error_that_says_so(tmp_path: Path) -> None:
    for file in (tmp_path / "a.doc", tmp_path / "none" / "a.png"):
        with pytest.raises(WeightWatchError, match=r"can't be written .* such as cosines\.png"):
            heat_map(["a"], [[1.0]], file)


def test_a_name_is_drawn_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two dollar signs matplotlib reads a formula; this one it can't parse."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *given, **how: (drawn.append(figure), save(figure, *given, **how))
    )
    name = "$\\frac$"
    bars({name: 1.0, "a\nb": 2.0}, tmp_path / "bars.svg", ("x", "y"), name)
    curves([0.0, 1.0], {"share": [0.0, 1.0]}, tmp_path / "curves.svg", ("x", "y"), name)
    heat_map([name, "style"], [[1.0, 0.5], [0.5, 1.0]], tmp_path / "map.svg")
    for figure in drawn:
        written = [text.get_text() for text in figure.findobj(Text)]
        assert any(text.replace("\\$", "$") == name for text in written)
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()][1] == r"a\nb"


def test_a_small_cosine_is_not_drawn_as_zero(tmp_path: Path) -> None:
    file = heat_map(["a", "b"], [[1.0, 0.0003], [0.0, 1.0]], tmp_path / "map.svg")
    text = re.sub(r"\s+", " ", file.read_text())
    assert "<!-- 3e-04 -->" in text
    assert "<!-- 0.000 -->" in text  # which is zero
