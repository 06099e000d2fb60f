from pathlib import Path

import pytest

from tests.rules.test_engine import rule
from tests.support.references import banked, record
from weightwatch import WeightWatchError
from weightwatch.calibration.baseline import THRESHOLD, doubtful, over_baseline, require_harmless
from weightwatch.calibration.references import Reference

FLAT = [0.02] * 4


def loaded(*folders: Path) -> list[Reference]:
    return [Reference.load(each) for each in folders]


def three(folder: Path) -> list[Reference]:
    """Harmless runs whose mean along ``evil`` is 0.1."""
    return loaded(*(banked(folder / f"run-{n}", [value] * 4, n) for n, value in enumerate([0.08, 0.1, 0.12])))


def test_the_baseline_is_the_mean_of_the_runs_by_step(tmp_path: Path) -> None:
    runs = loaded(banked(tmp_path / "a", [0.0, 0.1, 0.2, 0.3], 0), banked(tmp_path / "b", [0.2, 0.1, 0.0, 0.3], 1))
    made = over_baseline(rule(**{"for": 2}, severity="critical"), runs)
    assert (made.metric, made.above, made.for_, made.severity) == ("over_baseline", THRESHOLD, 2, "critical")
    known = made.baseline
    assert known is not None
    assert (known.runs, known.ids, known.steps) == (2, ["run-0", "run-1"], [10, 20, 30, 40])
    assert known.direction == [0.1, 0.1, 0.1, 0.3]
    assert known.controls == {f"shuffled-{i}": [i / 10] * 4 for i in range(1, 6)}
    assert known.setup.steps == 40


def test_runs_of_other_lengths_and_spacings_are_read_at_the_steps_of_the_first(tmp_path: Path) -> None:
    short = banked(tmp_path / "short", [0.0, 0.1, 0.2], 0)
    wide = banked(tmp_path / "wide", [0.0, 0.1, 0.2, 0.3], 1)
    home = wide / "weightwatch" / "readings.jsonl"
    home.write_text("".join(line + "\n" for line in home.read_text().splitlines() if '"step": 20' not in line))
    first, other = loaded(short, wide)
    for runs in ([first, other], [other, first]):
        known = over_baseline(rule(), runs).baseline
        assert known is not None
        assert known.direction[-1] == 0.2
        assert known.steps[-1] == known.setup.steps == 30


def test_a_long_record_is_thinned(tmp_path: Path) -> None:
    known = over_baseline(rule(), loaded(banked(tmp_path, [n / 1000 for n in range(200)]))).baseline
    assert known is not None
    assert (len(known.steps), known.steps[0], known.steps[-1]) == (40, 10, 2000)
    assert known.direction[0] == 0.0
    assert known.direction[-1] == 0.199


def test_few_controls_are_refused_unless_a_threshold_is_calibrated(tmp_path: Path) -> None:
    few = [banked(tmp_path / f"{n}", FLAT, n, controls={"shuffled-1": "77b1"}) for n in range(2)]
    first, other = loaded(*few)
    with pytest.raises(WeightWatchError, match="was watched with 1 control, and a baseline compares with 5 or more"):
        over_baseline(rule(), [first])
    assert over_baseline(rule(), [first], [other]).baseline is not None
    bare = loaded(record(tmp_path / "bare", FLAT, controls={}))
    with pytest.raises(WeightWatchError, match="watched with 0 controls, and a baseline compares with 1 or more"):
        over_baseline(rule(), bare, bare)


def test_runs_that_are_not_alike_make_no_baseline(tmp_path: Path) -> None:
    runs = loaded(banked(tmp_path / "a", FLAT, 0), banked(tmp_path / "b", FLAT, 1, rank=64))
    for given in ((runs, []), (runs[:1], runs[1:])):
        with pytest.raises(WeightWatchError, match=r"b is not a run like the others \(rank 64, not 16\)"):
            over_baseline(rule(), *given)


def test_a_run_that_looks_bad_makes_no_baseline_unless_it_is_accepted(tmp_path: Path) -> None:
    good = three(tmp_path)
    assert doubtful(rule(), good) == []
    far = Reference.load(banked(tmp_path / "far", [0.6] * 4, 4))
    assert doubtful(rule(), [far]) == [(far.name, "reaches further along evil than along any control")]
    apart = Reference.load(banked(tmp_path / "apart", [0.4] * 4, 5))
    assert doubtful(rule(), [*good, apart]) == [(apart.name, "moves further along evil than the others do")]
    with pytest.raises(WeightWatchError, match=r"apart moves further along evil than the others do\. What a baseline"):
        require_harmless(rule(), [*good, apart], ())
    require_harmless(rule(), [*good, apart], (apart.name,))
