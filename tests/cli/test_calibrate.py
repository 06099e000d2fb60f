"""``weightwatch calibrate`` as a user calls it."""

from pathlib import Path

import pytest
import yaml

from tests.support.commands import call, refused, told
from tests.support.references import BANK, banked, records
from weightwatch import Config, Direction
from weightwatch.callbacks.references import ReferenceRuns

RULE = {"alert": "mine", "direction": "evil", "metric": "dose", "above": 0.3, "actions": ["log", "stop"]}
LOW = {"alert": "low", "direction": "evil", "below": -0.5}


def test_settings_with_the_calibrated_rule_are_written(tmp_path: Path) -> None:
    runs = records(tmp_path)
    result = call("calibrate", *runs, "--output", tmp_path / "new.yaml")
    assert result.exit_code == 0, result.output
    settings = Config.load(tmp_path / "new.yaml")
    assert settings.directions == ["evil"]
    (made,) = settings.rules
    assert (made.alert, made.metric, made.for_, made.above) == ("evil-drift", "over_controls", 2, 0.19)
    assert made.calibration is not None
    assert made.calibration.rate == 0.05
    assert f"Written to {tmp_path / 'new.yaml'}" in result.output.replace("\n", "")


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    refused("can't be written", "calibrate", *records(tmp_path), "--output", tmp_path / "none" / "new.yaml")


def test_the_rules_of_the_first_run_are_calibrated_and_the_others_kept(tmp_path: Path) -> None:
    runs = records(tmp_path, rules=[RULE, LOW])
    call("calibrate", *runs, "--output", tmp_path / "new.yaml")
    mine, low = Config.load(tmp_path / "new.yaml").rules
    assert (mine.alert, mine.metric, mine.above, mine.actions) == ("mine", "dose", 0.19, ["log", "stop"])
    assert (low.alert, low.below, low.calibration) == ("low", -0.5, None)


def test_a_file_that_exists_is_replaced_only_if_it_is_the_settings(tmp_path: Path) -> None:
    runs, file = records(tmp_path), tmp_path / "mine.yaml"
    file.write_text(Config.load({"directions": ["evil"], "every": 7, "rules": [RULE]}).to_yaml())
    refused("mine.yaml exists. Pass it as --config, too", "calibrate", *runs, "--output", file)
    assert call("calibrate", *runs, "--config", file, "--output", file).exit_code == 0
    settings = Config.load(file)
    assert (settings.every, settings.rules[0].alert, settings.rules[0].above) == (7, "mine", 0.19)


def test_the_json_has_the_rule_and_the_score_of_each_run(tmp_path: Path) -> None:
    (found,) = told("calibrate", *records(tmp_path), "--for", 1, "--metric", "reach_cosine")
    assert (found["rule"]["for"], found["rule"]["above"]) == (1, 0.19)
    assert found["rule"]["calibration"]["runs"] == 19
    assert found["scores"][str(tmp_path / "run-7")] == 0.07


def test_without_an_output_nothing_is_written_and_it_is_said_how(tmp_path: Path) -> None:
    runs = records(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert "Pass --output" in call("calibrate", *runs).output
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    refused("Name runs to calibrate on, or pass --from-data", "calibrate")
    refused(
        "Name runs to calibrate on, or pass --from-data", "calibrate", tmp_path, "--from-data", tmp_path / "x.jsonl"
    )
    refused("--from-data needs --model, and --config", "calibrate", "--from-data", tmp_path / "x.jsonl")
    refused("can't support a rate of 0.01: that takes 99", "calibrate", *records(tmp_path), "--rate", "0.01")


@pytest.mark.parametrize("option", ["--runs", "--steps", "--batch-size", "--rank", "--learning-rate", "--model"])
def test_an_option_of_runs_that_are_trained_is_refused_where_none_is(tmp_path: Path, option: str) -> None:
    refused(f"{option} is for runs that --from-data trains", "calibrate", *records(tmp_path), option, "1")


def test_controls_beside_the_directions_stay_where_they_are(tmp_path: Path) -> None:
    """Settings without ``controls`` mean those beside the directions; ``controls: []`` would mean none."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("directions: [evil]\nevery: 10\n")
    assert call("calibrate", *records(tmp_path), "--config", mine, "--output", mine).exit_code == 0
    assert "controls" not in yaml.safe_load(mine.read_text())
    assert "controls" not in Config.load(mine).model_fields_set


def test_settings_that_cannot_be_written_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("directions: [evil]\nevery: 10\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weightwatch.cli.files.write_text", full)
    refused("No space left on device", "calibrate", *records(tmp_path), "--config", mine, "--output", mine)
    assert mine.read_text() == "directions: [evil]\nevery: 10\n"


def test_the_settings_are_recognised_by_another_path(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine.yaml", tmp_path / "link.yaml"
    mine.write_text("directions: [evil]\nevery: 10\n")
    link.symlink_to(mine)
    assert call("calibrate", *records(tmp_path), "--config", mine, "--output", link).exit_code == 0
    assert link.is_symlink()
    assert Config.load(mine).rules[0].calibration is not None


@pytest.mark.parametrize("output", ["", "none/x.yaml", "x" * 300])
def test_an_output_that_is_no_file_is_refused(tmp_path: Path, output: str) -> None:
    refused("can't be written", "calibrate", *records(tmp_path), "--output", tmp_path / output)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--runs", "5"], "5 reference runs can't support a rate of 0.05"),
        (["--rate", "7"], "is between 0 and 1"),
        (["--metric", "bogus"], "There is no metric 'bogus'"),
        (["--output", "none/x.yaml"], "can't be written"),
    ],
)
def test_what_no_training_could_support_is_refused_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr(ReferenceRuns, "train", lambda *_: pytest.fail("it was trained"))
    mine, data = tmp_path / "mine.yaml", tmp_path / "data.jsonl"
    mine.write_text("directions: [evil]\nevery: 10\n")
    data.write_text('{"text": "a"}\n')
    given = ("calibrate", "--from-data", data, "--model", "organism", "--config", mine, *arguments)
    refused(told, *given)


def test_below_eight_references_it_is_said_that_none_can_be_told_from_the_others(tmp_path: Path) -> None:
    result = call("calibrate", *records(tmp_path, 4), "--rate", "0.2")
    assert "With fewer than 8 references it can't be told" in " ".join(result.output.split())


def test_a_name_with_escape_sequences_is_printed_as_text(tmp_path: Path) -> None:
    rule = {"alert": "a\x1b[31mb", "direction": "evil", "above": 0.1}
    assert "\x1b[31m" not in call("calibrate", *records(tmp_path, rules=[rule])).output


def test_a_baseline_of_few_runs_is_written_and_named(tmp_path: Path) -> None:
    runs = [banked(tmp_path / f"run-{n}", [0.1] * 4, n) for n in range(3)]
    result = call("calibrate", *runs, "--baseline", 3, "--output", tmp_path / "new.yaml")
    assert result.exit_code == 0, result.output
    (made,) = Config.load(tmp_path / "new.yaml").rules
    assert (made.alert, made.metric, made.above, made.for_) == ("evil-drift", "over_baseline", 3.0, 2)
    assert made.baseline is not None
    assert made.baseline.figures["evil"] == [0.1] * 4
    said = " ".join(result.output.split())
    assert "beyond the mean of 3 harmless runs, over 8 controls. The threshold is the usual one, not calibrated" in said
    assert f"Runs of the baseline: {', '.join(map(str, runs))}." in said
    assert "[0.1, 0.1, 0.1, 0.1]" in (tmp_path / "new.yaml").read_text()
    (found,) = told("calibrate", *runs, "--baseline", 3)
    assert found["baseline"] == list(map(str, runs))
    refused("see --baseline", "calibrate", *runs)
    refused("A baseline of 4 runs takes as many", "calibrate", *runs, "--baseline", 4)
    refused("--rate is for a threshold that is calibrated", "calibrate", *runs, "--baseline", 3, "--rate", "0.1")
    refused("The first 2 runs make the baseline, and 1 is left", "calibrate", *runs, "--baseline", 2)


def test_rules_that_stay_as_they_are_are_named(tmp_path: Path) -> None:
    runs = [banked(tmp_path / f"run-{n}", [0.1] * 4, n) for n in range(3)]
    mine = tmp_path / "mine.yaml"
    mine.write_text(Config.load({"directions": ["evil"], "rules": [RULE, LOW]}).to_yaml())
    assert (
        "Rules that stay as they are: mine, low." in call("calibrate", *runs, "--baseline", 3, "--config", mine).output
    )


def test_a_baseline_from_data_takes_as_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [banked(tmp_path / f"run-{n}", [0.1] * 4, n) for n in range(3)]
    monkeypatch.setattr(ReferenceRuns, "train", lambda self, count, progress: runs[:count])
    mine, data = tmp_path / "mine.yaml", tmp_path / "data.jsonl"
    bank = [Direction.load("style").with_card(name=name).save(tmp_path / name) for name in BANK]
    mine.write_text(f"directions: [evil]\ncontrols: [{', '.join(map(str, bank))}]\nevery: 10\n")
    data.write_text('{"text": "a"}\n')
    given = ("calibrate", "--from-data", data, "--model", "organism", "--config", mine, "--baseline", 3)
    (found,) = told(*given)
    assert found["rule"]["baseline"]["runs"] == 3
    refused("The first 3 runs make the baseline, and 1 is left", *given, "--runs", 4)
    refused("A baseline of 3 runs takes as many, and there are 2", *given, "--runs", 2)
    refused("A run of 200 steps has 20 checks, and a rule takes 21 in a row", *given, "--for", 21)
    mine.write_text("directions: [evil]\ncontrols: [style]\nevery: 10\n")
    refused("A baseline compares with 8 controls or more that have weights in what is trained, and there is 1", *given)
