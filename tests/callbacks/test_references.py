"""Reference runs are trained for real, on the organism."""

import json
from dataclasses import replace
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
    assert [each.step for each in first.readings] == [0, 2, 4]
    assert first.readings[-1]["evil"].over_controls is not None
    assert first.readings[-1]["evil"].cosine != second.readings[-1]["evil"].cosine
    assert (first.setup.trainer, first.setup.method, first.setup.rank) == ("SFTTrainer", "LORA", 16)
    assert first.setup.differences(second.setup, "evil", controls=True) == []
    times = [each.time for each in first.readings]
    (tmp_path / "runs" / "run-002" / "weightwatch" / "readings.jsonl").unlink()  # as if it had been interrupted
    again = [Reference.load(each) for each in wanted.train(2)]
    assert [each.time for each in again[0].readings] == times
    assert [each["evil"].cosine for each in again[1].readings] == [each["evil"].cosine for each in second.readings]


def test_runs_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    first = plan(tmp_path)
    (tmp_path / "runs").mkdir()
    assert first.train(0) == []
    with pytest.raises(WeightWatchError, match=r"runs has reference runs with another rank, learning_rate\. Pass"):
        replace(first, rank=8, learning_rate=1e-4).train(0)
    first.data.write_text(first.data.read_text() * 2)
    with pytest.raises(WeightWatchError, match="with another data"):
        first.train(0)


def test_data_that_is_no_json_is_refused(tmp_path: Path) -> None:
    wanted = plan(tmp_path)
    with pytest.raises(WeightWatchError, match=r"nowhere\.jsonl can't be read: No such file"):
        replace(wanted, data=tmp_path / "nowhere.jsonl").train(1)
    wanted.data.write_text("no json")
    with pytest.raises(WeightWatchError, match=r"trusted\.jsonl can't be read as JSON lines"):
        wanted.train(1)
