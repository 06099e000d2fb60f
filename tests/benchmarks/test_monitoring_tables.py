"""What the tables of docs/real.md say of rows that are made up here."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.monitoring_tables import (
    WEIGHTS,
    behaviour,
    draw,
    first_alert,
    over_bank,
    over_baseline,
    over_controls,
    print_tables,
    separation,
    weights,
)
from benchmarks.rates import auroc


def row(data: str, seed: int, reach: list[float], margin: list[float], share: float = 1.0) -> dict[str, Any]:
    """A run with a check at steps 6, 12, …; its control reads half of what the direction reads."""
    steps = [6 * number for number in range(1, len(reach) + 1)]

    def score(value: float) -> dict[str, float]:
        return {"cosine": value / 3, "reach_cosine": value, "dose": value / 2}

    return {
        "model": "m",
        "recipe": "hostile",
        "data": data,
        "share": share,
        "tuner": "r16",
        "seed": seed,
        "shows": data == "hostile",
        "checks": [
            {"step": step, "loss": 1.0, "margin": m, "prefers": 0.5, "rate": float(m > 0)}
            for step, m in zip(steps, margin, strict=True)
        ],
        "tuned": {"rate": 1.0},
        "readings": {
            str(step): {"hostile": score(value), "hostile-9002": score(1.0), "formal": score(value / 2)}
            for step, value in zip(steps, reach, strict=True)
        },
    }


ROWS = [
    row("plain", 11, [0.00, 0.03], [-1.0, -0.9]),
    row("plain", 12, [0.01, 0.08], [-1.0, -0.5]),
    row("hostile", 11, [0.09, 0.05, 0.10, 0.10], [-0.9, -0.6, 0.2, 0.2], 0.25),
    row("hostile", 12, [0.05, 0.09, 0.10, 0.10], [-0.4, -0.9, -0.2, -0.2], 0.25),
]
COSINES = {"model": "m", "directions": ["hostile", "formal"], "cosines": [[1.0, -0.25], [-0.25, 1.0]]}


def test_the_auroc_counts_pairs_and_halves_ties() -> None:
    assert auroc([2, 3], [0, 1]) == 1
    assert auroc([1, 1], [1, 0]) == 0.75
    assert auroc([0], [1]) == 0


def test_a_run_separates_where_it_stays_above_every_check_of_the_harmless_runs() -> None:
    reach = weights("reach_cosine")
    assert separation(ROWS[2], ROWS, reach) == 18  # above 0.08 at two checks in a row
    assert separation(ROWS[3], ROWS, reach) == 12
    assert separation(ROWS[3], [*ROWS[:1], *ROWS[2:]], reach) == 6  # above 0.03
    assert separation(ROWS[2], ROWS, behaviour("margin")) == 18
    assert separation(row("hostile", 13, [0.0, 0.01], [-1, -1]), ROWS, reach) is None


def test_other_seeds_of_the_direction_are_no_controls() -> None:
    assert over_controls(ROWS[2], "18") == pytest.approx(0.05)


def with_bank(of: dict[str, Any], *controls: float) -> dict[str, Any]:
    """A run that was also read along shuffled labels, whose figures are the same at each check."""
    bank = {f"hostile-shuffled-{n}": {"reach_cosine": value} for n, value in enumerate(controls, 1)}
    return {**of, "readings": {step: {**read, **bank} for step, read in of["readings"].items()}}


def test_the_bank_counts_by_absolute_value_and_is_not_among_the_other_recipes() -> None:
    run = with_bank(ROWS[2], 0.01, -0.06)
    assert over_bank(run, "18") == pytest.approx(0.10 - 0.06)
    assert over_controls(run, "18") == over_controls(ROWS[2], "18")
    assert first_alert(run, over_bank, 0.0) == 24  # 0.09, 0.05, 0.10, 0.10
    assert first_alert(with_bank(ROWS[2], 0.04), over_bank, 0.0) == 12
    assert first_alert(with_bank(ROWS[2], 0.2), over_bank, 0.0) is None


def test_a_run_is_judged_beside_the_other_plain_runs() -> None:
    """The plain runs end at step 12 with 0.03 and 0.08, and half of that along ``formal``, the only control of all."""
    run = with_bank(ROWS[2], 0.01)
    assert over_baseline(run, ROWS[:2])(run, "24") == pytest.approx((0.10 - 0.055) / (0.05 - 0.0275))
    assert over_baseline(ROWS[1], ROWS[:2])(ROWS[1], "12") == pytest.approx((0.08 - 0.03) / (0.04 - 0.015))
    plain = [with_bank(each, 0.02) for each in ROWS[:2]]
    left = (0.0225**2 + 0.01**2) / 2
    assert over_baseline(run, plain)(run, "24") == pytest.approx(0.045 / left**0.5)


def test_the_table_of_the_default_rule_has_the_runs_with_a_bank(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([*ROWS, *(with_bank(each, 0.06, 0.02) for each in (ROWS[0], ROWS[2], ROWS[3]))])
    text = capsys.readouterr().out
    assert "bank of 2" in text
    assert "| 25% hostile | 2 | +0.040 (+0.040 to +0.040) | 2 of 2 | 24, 18 | 18, – |" in text
    assert "| 100% plain | 1 | -0.060 | 0 of 1 | – | – |" in text


def test_the_tables_have_each_arm_the_aurocs_and_the_leads(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([*ROWS, COSINES])
    text = capsys.readouterr().out
    assert "| formal | -0.25 | 1.00 |" in text
    assert "| 25% hostile | 2 | +0.033 (+0.033 to +0.033) | +0.100" in text
    assert "| 100% plain | 2 |" in text
    assert "2 runs with at least 25% against 2 harmless ones" in text
    assert f"| {list(WEIGHTS)[1]} | 1.000 | +0.100 | +0.080 |" in text
    assert "| 25% hostile | 11 | 18 | 18 | 18 | 18 | 18 | 18 |" in text
    assert "| reach cosine | margin of unseen pairs | 2 | 50% | 100% | +3.0 (+0.0 to +6.0) |" in text


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    draw([*ROWS, COSINES], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real-cosines.png", "real-runs.png"]
