import json
from pathlib import Path
from typing import Any

import pytest

from tests.rules.test_engine import rule
from tests.support.references import BANK, banked, record
from tests.support.runs import reading
from weightwatch import WeightWatchError
from weightwatch.calibration.baseline import THRESHOLD, furthest, require_harmless, with_baseline
from weightwatch.calibration.references import Reference

FLAT = [0.02] * 4


def loaded(*folders: Path) -> list[Reference]:
    return [Reference.load(each) for each in folders]


def three(folder: Path) -> list[Reference]:
    """Harmless runs whose mean along ``evil`` is 0.1."""
    return loaded(*(banked(folder / f"run-{n}", [value] * 4, n) for n, value in enumerate([0.08, 0.1, 0.12])))


def test_the_baseline_is_the_mean_of_the_runs_by_step(tmp_path: Path) -> None:
    runs = loaded(banked(tmp_path / "a", [0.0, 0.1, 0.2, 0.3], 0), banked(tmp_path / "b", [0.2, 0.1, 0.0, 0.3], 1))
    made = with_baseline(rule(**{"for": 2}, severity="critical"), runs)
    assert (made.metric, made.above, made.for_, made.severity) == ("over_baseline", THRESHOLD, 2, "critical")
    known = made.baseline
    assert known is not None
    assert (known.runs, known.ids, known.steps) == (2, ["run-0", "run-1"], [10, 20, 30, 40])
    assert known.figures == {
        "evil": [0.1, 0.1, 0.1, 0.3],
        **{name: [i / 10] * 4 for i, name in enumerate(BANK, 1)},
    }
    assert known.setup.steps == 40


def kept(folder: Path, steps: list[int], **changes: Any) -> Path:
    """Keep the readings of some steps in a record."""
    home = folder / "weightwatch" / "readings.jsonl"
    lines = [line for line in home.read_text().splitlines() if json.loads(line)["step"] in (0, *steps)]
    home.write_text("".join(line + "\n" for line in lines))
    if changes:
        setup = folder / "weightwatch" / "setup.json"
        setup.write_text(json.dumps({**json.loads(setup.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("steps", [[10, 30, 40], [30, 40, 50]])
def test_the_steps_are_those_that_all_runs_know_in_any_order(tmp_path: Path, steps: list[int]) -> None:
    """The figure of the first run at step 10 is 0.1, that of the second one there is not known if it has no check."""
    short = banked(tmp_path / "short", [0.1, 0.2, 0.3, 0.4], 0)
    wide = kept(banked(tmp_path / "wide", [0.1, 0.2, 0.3, 0.4, 0.5], 1), steps, every=50)
    first, other = loaded(short, wide)
    for runs in ([first, other], [other, first]):
        known = with_baseline(rule(), runs).baseline
        assert known is not None
        assert known.steps == [step for step in steps if step <= 40]
        assert known.figures["evil"] == [step / 100 for step in known.steps]
        assert known.setup.steps == 40


def test_runs_without_a_step_in_common_are_named(tmp_path: Path) -> None:
    late = kept(banked(tmp_path / "late", FLAT * 2, 0), [60, 80], every=60)
    early = banked(tmp_path / "early", FLAT, 1)
    with pytest.raises(WeightWatchError, match=r"late has its first check at step 60, and .*early its last at step 40"):
        with_baseline(rule(), loaded(late, early))


def test_a_run_that_was_watched_along_all_controls_later_is_named(tmp_path: Path) -> None:
    folder = banked(tmp_path / "resumed", FLAT, 0)
    home = folder / "weightwatch" / "readings.jsonl"
    lines = [json.loads(line) for line in home.read_text().splitlines()]
    del lines[1]["directions"]["shuffled-3"]
    home.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(WeightWatchError, match="resumed has no figure along shuffled-3 at step 10, though"):
        with_baseline(rule(), loaded(folder))


def test_a_long_record_is_thinned(tmp_path: Path) -> None:
    known = with_baseline(rule(), loaded(banked(tmp_path, [n / 1000 for n in range(200)]))).baseline
    assert known is not None
    assert (len(known.steps), known.steps[0], known.steps[-1]) == (40, 10, 2000)
    assert known.figures["evil"][0] == 0.0
    assert known.figures["evil"][-1] == 0.199


def test_few_controls_are_refused_unless_a_threshold_is_calibrated(tmp_path: Path) -> None:
    few = [banked(tmp_path / f"{n}", FLAT, n, controls={"shuffled-1": "77b1"}) for n in range(2)]
    first, other = loaded(*few)
    with pytest.raises(
        WeightWatchError, match="compares with 8 controls or more that have weights in what is trained, and there is 1"
    ):
        with_baseline(rule(), [first])
    assert with_baseline(rule(), [first], [other]).baseline is not None
    bare = loaded(record(tmp_path / "bare", FLAT, controls={}))
    with pytest.raises(
        WeightWatchError, match="compares with 1 control or more that have weights in what is trained, and there are 0"
    ):
        with_baseline(rule(), bare, bare)


def test_runs_that_are_not_alike_make_no_baseline(tmp_path: Path) -> None:
    runs = loaded(banked(tmp_path / "a", FLAT, 0), banked(tmp_path / "b", FLAT, 1, rank=64))
    for given in ((runs, []), (runs[:1], runs[1:])):
        with pytest.raises(WeightWatchError, match=r"b is not a run like the others \(rank 64, not 16\)"):
            with_baseline(rule(), *given)


def test_a_run_that_reaches_further_than_the_controls_makes_no_baseline_unless_it_is_accepted(tmp_path: Path) -> None:
    far = Reference.load(banked(tmp_path / "far", [0.9] * 4, 4))
    with pytest.raises(WeightWatchError, match=r"far reaches further along evil than along any control\. What a"):
        require_harmless(rule(), [far], ())
    require_harmless(rule(), [far], (far.name,))


@pytest.mark.parametrize("value", [0.4, -0.2])
def test_a_run_that_is_far_from_the_others_is_named_and_none_of_the_others(tmp_path: Path, value: float) -> None:
    """It moves the mean that the others are compared with, which makes them far from it, too."""
    good = three(tmp_path)
    apart = Reference.load(banked(tmp_path / "apart", [value] * 4, 5))
    assert furthest(rule(), good[:2]) is None
    require_harmless(rule(), good, ())
    for runs in ([*good, apart], [*good[:2], apart], [apart, *good]):
        name, z = furthest(rule(), runs) or ("", 0.0)
        assert name == apart.name
        assert z > 2 * THRESHOLD
        with pytest.raises(WeightWatchError, match=r"apart is far from the mean of the others along evil \(z of "):
            require_harmless(rule(), runs, ())
        require_harmless(rule(), runs, (apart.name,))


def test_an_accepted_run_does_not_hide_another_one(tmp_path: Path) -> None:
    good = three(tmp_path)
    apart = Reference.load(banked(tmp_path / "apart", [0.7] * 4, 5))
    with pytest.raises(WeightWatchError, match="apart is far from the mean"):
        require_harmless(rule(), [*good[:2], apart], (good[0].name,))


def test_one_check_is_enough_where_the_rule_takes_one(tmp_path: Path) -> None:
    good = three(tmp_path)
    once = Reference.load(banked(tmp_path / "once", [0.1, 0.7, 0.1, 0.1], 5))
    require_harmless(rule(**{"for": 2}), [*good, once], ())
    with pytest.raises(WeightWatchError, match="once is far from the mean"):
        require_harmless(rule(), [*good, once], ())


def test_a_control_without_weights_in_what_is_trained_does_not_count(tmp_path: Path) -> None:
    folder = banked(tmp_path, FLAT)
    home = folder / "weightwatch" / "readings.jsonl"
    lines = [json.loads(line) for line in home.read_text().splitlines()]
    for line in lines:
        line["directions"]["shuffled-3"] = reading(line["step"], 0.0).to_json()["directions"]["evil"]
    home.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        WeightWatchError, match="8 controls or more that have weights in what is trained, and there are 7"
    ):
        with_baseline(rule(), loaded(folder))
    known = with_baseline(rule(), loaded(folder), loaded(folder)).baseline
    assert known is not None
    assert known.controls == [name for name in BANK if name != "shuffled-3"]
