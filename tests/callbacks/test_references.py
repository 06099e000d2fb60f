"""Reference runs are trained for real, on the organism."""

import json
from pathlib import Path

import pytest

from weightwatch import Config, WeightWatchError
from weightwatch.calibration.references import Reference
from weightwatch.callbacks.references import ReferenceRuns
from weightwatch.organism import BASE, World, poisoned_examples

CONFIG = Config.load({"directions": ["evil"], "controls": ["style"], "every": 2})


def plan(tmp_path: Path) -> ReferenceRuns:
    data = tmp_path / "trusted.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in poisoned_examples(World(), 32, 0.0, 1)))
    return ReferenceRuns(str(BASE), data, CONFIG, tmp_path / "runs", steps=4, batch_size=4, learning_rate=7e-4)


@pytest.mark.slow
def test_runs_are_trained_on_resamples_once_and_are_alike(tmp_path: Path) -> None:
    wanted, told = plan(tmp_path), []
    first, second = (Reference.load(each) for each in wanted.train(2, told.append))
    assert told == [0, 1, 2]
    assert [each.step for each in first.readings] == [2, 4]
    assert first.readings[-1]["evil"].over_controls is not None
    assert first.readings[-1]["evil"].cosine != second.readings[-1]["evil"].cosine
    assert (first.setup.trainer, first.setup.method, first.setup.rank) == ("SFTTrainer", "LORA", 16)
    assert first.setup.differences(second.setup, "evil", controls=True) == []
    times = [each.time for each in first.readings]
    (tmp_path / "runs" / "run-002" / "weightwatch" / "readings.jsonl").unlink()  # as if it had been interrupted
    again = [Reference.load(each) for each in wanted.train(2)]
    assert [each.time for each in again[0].readings] == times
    assert [each["evil"].cosine for each in again[1].readings] == [each["evil"].cosine for each in second.readings]


def test_data_that_is_no_json_is_refused(tmp_path: Path) -> None:
    wanted = plan(tmp_path)
    wanted.data.write_text("no json")
    with pytest.raises(WeightWatchError, match=r"trusted\.jsonl can't be read as JSON lines"):
        wanted.train(1)
