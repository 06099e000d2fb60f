from pathlib import Path

from rich.console import Console

from tests.rules.test_engine import rule
from tests.support.references import BASELINE, banked, records
from weightwatch.baseline import Baseline
from weightwatch.calibration.calibrate import calibrate
from weightwatch.calibration.references import Reference
from weightwatch.report.calibration import table, told


def test_the_table_and_the_words_have_the_rates_the_runs_and_their_scores(tmp_path: Path) -> None:
    found = calibrate([Reference.load(each) for each in records(tmp_path)], [rule(alert="evil-[drift]")])
    screen = Console(width=80, record=True)
    screen.print(table(found))
    row = next(line for line in screen.export_text().splitlines() if "drift" in line)
    assert row.split() == ["evil-[drift]", "reach_cosine", "+0.190", "5.0%", "14.6%", "+0.100", "+0.190"]
    text = told(found[0].rule)
    assert "at most 5.0% of harmless runs like these 19 raise it" in text
    assert (
        "SFTTrainer, LORA, rank 16, adamw_torch, learning rate about 0.001, at most 40 steps, a check every 10" in text
    )
    assert told(rule()) == ""


def test_a_baseline_without_other_runs_has_no_rates(tmp_path: Path) -> None:
    runs = [Reference.load(banked(tmp_path / f"run-{n}", [0.1] * 4, n)) for n in range(2)]
    found = calibrate(runs, [rule(alert="evil-drift")], baseline=2)
    screen = Console(width=80, record=True)
    screen.print(table(found))
    row = next(line for line in screen.export_text().splitlines() if "drift" in line)
    assert row.split() == ["evil-drift", "over_baseline", "+3.000", "–", "–", "–", "–"]
    assert told(found[0].rule).startswith(
        "evil-drift: beyond the mean of 2 harmless runs, over 8 controls. The threshold is the usual one, not "
        "calibrated: measured for 3 to 5 runs and `for: 2` alone."
    )
    measured = found[0].rule.model_copy(update={"for_": 2, "baseline": Baseline.model_validate(BASELINE)})
    assert "not calibrated: docs/detection.md has how often it is wrong" in told(measured)
    assert "SFTTrainer, LORA, rank 16" in told(found[0].rule)
