import json
from pathlib import Path
from typing import Any

import pytest

from tests.rules.test_engine import rule
from tests.support.references import BASELINE, LIKE, banked, record, records
from weightwatch import Config, WeightWatchError
from weightwatch.calibration.baseline import THRESHOLD
from weightwatch.calibration.calibrate import calibrate, to_calibrate
from weightwatch.calibration.references import Reference
from weightwatch.config import Rule
from weightwatch.setup import Setup


def loaded(folders: list[Path]) -> list[Reference]:
    return [Reference.load(each) for each in folders]


def test_the_threshold_is_the_largest_score_of_nineteen_runs_at_five_percent(tmp_path: Path) -> None:
    (found,) = calibrate(loaded(records(tmp_path)), [rule(**{"for": 2}, severity="critical")])
    assert found.rule.threshold == 0.19
    assert (found.rule.for_, found.rule.severity) == (2, "critical")
    known = found.rule.calibration
    assert known is not None
    assert (known.runs, known.rate, known.bound) == (19, 0.05, 0.1459)
    assert known.setup == Setup.model_validate(LIKE)
    assert len(found.scores) == 19


def test_no_reference_raises_the_rule_and_a_larger_run_does(tmp_path: Path) -> None:
    from weightwatch.rules.manager import RuleManager

    references = loaded(records(tmp_path))
    (found,) = calibrate(references, [rule(**{"for": 2})])
    worse = Reference.load(record(tmp_path / "worse", [0.2, 0.2], 30))
    fired = []
    for each in (*references, worse):
        manager = RuleManager([found.rule], lambda _: True, each.setup)
        manager.replay(each.readings)
        fired.append(len(manager.alerts))
    assert fired == [*[0] * 19, 1]
    assert manager.alerts[0].note == (
        "Calibrated: harmless runs like its 19 references raise it at a rate of at most 5.0% (95 % bound for these "
        "references: 14.6%)."
    )


def test_the_threshold_is_rounded_upwards(tmp_path: Path) -> None:
    values = [0.1234567 + n / 1e9 for n in range(19)]
    references = loaded([record(tmp_path / f"run-{n}", [value], n) for n, value in enumerate(values)])
    (found,) = calibrate(references, [rule()])
    assert found.rule.threshold == 0.123457
    assert found.rule.threshold > max(found.scores.values())


def test_more_runs_than_a_rate_takes_make_use_of_the_rest(tmp_path: Path) -> None:
    (found,) = calibrate(loaded(records(tmp_path, 39)), [rule()], 0.05)
    assert found.rule.threshold == 0.38  # the second largest of 39


def test_two_rules_share_the_rate(tmp_path: Path) -> None:
    rules = [rule(), rule(alert="dose", metric="dose")]
    with pytest.raises(
        WeightWatchError, match=r"2 rules share a rate of 0.05, which takes 39 reference runs, and there"
    ):
        calibrate(loaded(records(tmp_path / "few")), rules)
    found = calibrate(loaded(records(tmp_path / "enough", 39)), rules)
    assert [each.rule.calibration.rate for each in found if each.rule.calibration] == [0.025, 0.025]


def test_too_few_runs_are_refused_with_the_number_that_is_needed(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"5 reference runs can't support a rate of 0.05: that takes 19"):
        calibrate(loaded(records(tmp_path, 5)), [rule()])


@pytest.mark.parametrize("rate", [0, 1, -1])
def test_a_rate_out_of_range_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(WeightWatchError, match="is between 0 and 1"):
        calibrate(loaded(records(tmp_path, 3)), [rule(), rule(alert="other")], rate)


def test_a_reference_that_looks_bad_is_named_and_kept_only_if_it_is_accepted(tmp_path: Path) -> None:
    bad = record(tmp_path / "bad", [0.9, 0.9], 28)
    references = loaded([*records(tmp_path, 19), bad])
    with pytest.raises(WeightWatchError, match=rf"{bad}: evil reach_cosine reaches 0.9, far above .* \(0.01 to 0.19\)"):
        calibrate(references, [rule()])
    (found,) = calibrate(references, [rule()], accept=[str(bad)])
    assert found.rule.threshold == 0.9


def test_a_run_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    folders = records(tmp_path)
    with pytest.raises(
        WeightWatchError,
        match=r"run-1 is the same run as .*run-1, or has its seed: .* A run counts once",
    ):
        calibrate(loaded([*folders, folders[0]]), [rule()])


def test_a_rule_that_fires_below_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match="fires below its threshold"):
        calibrate(loaded(records(tmp_path)), [rule(below=0.1)])


def test_rules_of_the_settings_are_calibrated_or_one_for_each_direction() -> None:
    setup = Setup.model_validate(LIKE)
    (made,) = to_calibrate(Config.load({"directions": ["evil"]}), setup)
    assert (made.alert, made.direction, made.metric, made.for_) == ("evil-drift", "evil", "over_controls", 2)
    (plain,) = to_calibrate(Config.load(None), setup.model_copy(update={"controls": {}}), checks=3)
    assert (plain.metric, plain.for_) == ("reach_cosine", 3)
    own: dict[str, Any] = {"alert": "mine", "direction": "evil", "metric": "dose", "above": 0.3}
    below = {"alert": "low", "direction": "evil", "below": -0.1}
    assert to_calibrate(Config.load({"rules": [own, below]}), setup) == [Rule.model_validate(own)]
    with pytest.raises(WeightWatchError, match="There is no metric 'height'; there are cosine, reach_cosine"):
        to_calibrate(Config.load(None), setup, "height")


def test_a_threshold_over_the_controls_is_not_below_zero(tmp_path: Path) -> None:
    """References of one task stay far below the controls; harmless runs of another need not."""
    low = loaded([record(tmp_path / f"run-{n}", [-0.05 - n / 1000] * 3, n) for n in range(19)])
    metrics = ("over_controls", "reach_cosine")
    assert [calibrate(low, [rule(metric=metric)])[0].rule.above for metric in metrics] == [0.0, -0.05]


def test_a_copy_of_a_run_and_a_run_with_its_seed_are_refused(tmp_path: Path) -> None:
    folders = records(tmp_path)
    copy = record(tmp_path / "copy", [0.0, 0.19, 0.19], 19)  # of run-19, without its last check
    with pytest.raises(WeightWatchError, match=r"copy is the same run as .*run-19, or has its seed"):
        calibrate(loaded([*folders, copy]), [rule()])
    for folder, run in ((folders[0], "a1"), (folders[5], "a1")):
        (folder / "weightwatch" / "run.json").write_text(json.dumps({"run": run}))
    with pytest.raises(WeightWatchError, match=r"run-6 is the same run as .*run-1,"):
        calibrate(loaded(folders), [rule()])


def test_a_run_that_has_not_finished_is_refused_unless_it_is_accepted(tmp_path: Path) -> None:
    died = record(tmp_path / "died", [0.01, 0.02], 30, steps=400)
    folders = [*records(tmp_path, 18), died]
    with pytest.raises(WeightWatchError, match=r"died is not a whole run: its last check is at step 20 of 400. Leave"):
        calibrate(loaded(folders), [rule()])
    for name in (died, f"{died}/", died / "weightwatch", tmp_path / "x" / ".." / "died"):
        (found,) = calibrate(loaded(folders), [rule()], accept=[str(name)])
        assert found.rule.calibration is not None
        assert found.rule.calibration.setup.steps == 20


def test_an_accepted_name_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match="--accept names nonsense, which is none of the runs"):
        calibrate(loaded(records(tmp_path)), [rule()], accept=["nonsense"])


def test_a_rule_of_the_settings_is_not_replaced_by_one_that_is_made(tmp_path: Path) -> None:
    settings = Config.load(
        {"directions": ["evil"], "rules": [{"alert": "evil-drift", "direction": "evil", "below": -0.2}]}
    )
    (made,) = to_calibrate(settings, Setup.model_validate(LIKE))
    assert made.alert == "evil-calibrated"


@pytest.mark.parametrize("given", [{"metric": "dose"}, {"checks": 3}])
def test_a_metric_for_rules_that_are_not_made_is_refused(given: dict[str, Any]) -> None:
    settings = Config.load({"directions": ["evil"], "rules": [{"alert": "mine", "direction": "evil", "above": 0.1}]})
    with pytest.raises(WeightWatchError, match=r"The settings have rules \(mine\), and these are calibrated with"):
        to_calibrate(settings, Setup.model_validate(LIKE), **given)


def test_a_threshold_that_nothing_can_pass_is_refused(tmp_path: Path) -> None:
    folders = [record(tmp_path / f"run-{n}", [1 - n / 1e9], n) for n in range(19)]
    with pytest.raises(WeightWatchError, match="The reach_cosine along evil is 1 in a reference, which no run"):
        calibrate(loaded(folders), [rule()])


@pytest.mark.parametrize("rate", [1e-320, 1e-7, 1.5, float("nan")])
def test_a_rate_that_makes_no_sense_is_refused(tmp_path: Path, rate: float) -> None:
    with pytest.raises(WeightWatchError, match="is between 0 and 1"):
        calibrate(loaded(records(tmp_path, 3)), [rule()], rate)


def test_a_rate_near_one_takes_the_lowest_score(tmp_path: Path) -> None:
    (found,) = calibrate(loaded(records(tmp_path)), [rule()], 0.99999999999)
    assert found.rule.above == 0.01


def test_the_first_runs_make_a_baseline_and_the_others_the_threshold(tmp_path: Path) -> None:
    """Along the controls each run is 0.01 off the baseline, so z is 100 times what is left along evil."""
    base = banked(tmp_path / "base", [0.1] * 4, 1), banked(tmp_path / "too", [0.1] * 4, 2)
    rest = [banked(tmp_path / f"run-{n}", [0.1 + n / 1000] * 4, 2 * n + 3) for n in range(1, 20)]
    (found,) = calibrate(loaded([*base, *rest]), [rule(**{"for": 2})], baseline=2)
    assert found.rule.above == pytest.approx(1.9)
    assert found.rule.baseline is not None
    assert found.rule.baseline.runs == 2
    assert found.rule.calibration is not None
    assert (found.rule.calibration.runs, found.rule.calibration.rate) == (19, 0.05)
    assert len(found.scores) == 19
    again = calibrate(loaded(rest), [found.rule])[0].rule
    assert again.above == found.rule.above
    with pytest.raises(WeightWatchError, match="base is one of the runs that the baseline of rule 'drift' was made of"):
        calibrate(loaded([base[0], *rest[1:]]), [found.rule])


def test_a_baseline_alone_has_the_usual_threshold(tmp_path: Path) -> None:
    runs = loaded([banked(tmp_path / f"{n}", [0.1] * 4, n) for n in range(3)])
    (found,) = calibrate(runs, [rule()], baseline=3)
    assert (found.rule.metric, found.rule.above, found.rule.calibration) == ("over_baseline", THRESHOLD, None)
    assert found.scores == {}
    with pytest.raises(WeightWatchError, match="A baseline of 4 runs takes as many, and there are 3"):
        calibrate(runs, [rule()], baseline=4)
    with pytest.raises(WeightWatchError, match=r"The first 2 runs make the baseline, and 1 is left for the threshold"):
        calibrate(runs, [rule()], baseline=2)
    with pytest.raises(WeightWatchError, match=r"3 reference runs can't support a rate of 0.05.*see --baseline"):
        calibrate(runs, [rule()])
    with pytest.raises(WeightWatchError, match="is the same run as"):
        calibrate([*runs, runs[0]], [rule()], baseline=4)


def test_rules_of_a_baseline_are_made_beside_those_of_other_metrics() -> None:
    setup = Setup.model_validate(LIKE)
    own: dict[str, Any] = {"alert": "evil-drift", "direction": "evil", "metric": "dose", "above": 0.3}
    (made,) = to_calibrate(Config.load({"rules": [own]}), setup, baseline=True)
    assert (made.alert, made.direction, made.for_) == ("evil-over-baseline", "evil", 2)
    twice = {**own, "alert": "evil-over-baseline"}
    (third,) = to_calibrate(Config.load({"rules": [own, twice]}), setup, baseline=True)
    assert third.alert == "evil-over-baseline-2"
    (plain,) = to_calibrate(Config.load(None), setup, "over_baseline", baseline=True)
    assert plain.alert == "evil-drift"
    with pytest.raises(WeightWatchError, match="A rule with a baseline has the metric over_baseline, not dose"):
        to_calibrate(Config.load(None), setup, "dose", baseline=True)
    with pytest.raises(WeightWatchError, match="The metric over_baseline takes a baseline: pass --baseline 3"):
        to_calibrate(Config.load(None), setup, "over_baseline")


def test_a_threshold_over_a_baseline_is_not_below_zero(tmp_path: Path) -> None:
    """These references stay below the baseline, so what is beyond it would alarm below it."""
    base = [banked(tmp_path / f"base-{n}", [0.3] * 4, n) for n in range(2)]
    rest = [banked(tmp_path / f"run-{n}", [0.1 + n / 1000] * 4, 2 * n + 3) for n in range(1, 20)]
    (found,) = calibrate(loaded([*base, *rest]), [rule()], baseline=2)
    assert max(found.scores.values()) < 0
    assert found.rule.above == 0


def test_references_that_are_not_like_the_runs_of_a_baseline_are_refused(tmp_path: Path) -> None:
    (found,) = calibrate(loaded([banked(tmp_path / "base", [0.1] * 4, 99)]), [rule()], baseline=1)
    other = [banked(tmp_path / f"run-{n}", [0.1] * 4, n, rank=64) for n in range(19)]
    with pytest.raises(
        WeightWatchError, match=r"not like the runs of the baseline of rule 'drift' \(rank 64, not 16\)"
    ):
        calibrate(loaded(other), [found.rule])
    longer = [banked(tmp_path / f"long-{n}", [0.1 + n / 1000] * 6, n) for n in range(19)]
    again = calibrate(loaded(longer), [found.rule])[0].rule.calibration
    assert again is not None
    assert again.setup.steps == 40  # those of the baseline


def test_a_run_of_a_baseline_is_known_without_its_id(tmp_path: Path) -> None:
    folders = [banked(tmp_path / f"run-{n}", [0.1 + n / 1000] * 4, n) for n in range(19)]
    for folder in folders:
        (folder / "weightwatch" / "run.json").unlink()
    (found,) = calibrate(loaded(folders[:1]), [rule()], baseline=1)
    with pytest.raises(
        WeightWatchError, match="run-0 is one of the runs that the baseline of rule 'drift' was made of"
    ):
        calibrate(loaded(folders), [found.rule])


def test_a_direction_without_a_baseline_gets_one_beside_a_rule_that_has_one() -> None:
    setup = Setup.model_validate({**LIKE, "directions": {"evil": "3f2a", "lazy": "77"}})
    over = {"alert": "mine", "direction": "evil", "metric": "over_baseline", "above": 3.0, "baseline": BASELINE}
    made = to_calibrate(Config.load({"rules": [over]}), setup, baseline=True)
    assert [(rule.alert, rule.direction) for rule in made] == [("mine", "evil"), ("lazy-drift", "lazy")]
