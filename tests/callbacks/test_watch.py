import pickle
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import GradientState
from transformers import Trainer

from tests.support.models import lora, low_rank, tiny_llama
from tests.support.runs import STRICT, steps, trainer
from weightwatch import WeightWatchCallback, WeightWatchError, watch


def watched(folder: Path, **changes: Any) -> tuple[Trainer, WeightWatchCallback]:
    task = trainer(lora(tiny_llama()), folder, **changes)
    return task, watch(task, [low_rank(tiny_llama(), 5)], config=STRICT)


def checked(task: Trainer) -> list[int]:
    return [entry["step"] for entry in task.state.log_history if "weightwatch/evil/cosine" in entry]


def test_watching_records_and_logs_what_the_callback_does(tmp_path: Path) -> None:
    task, callback = watched(tmp_path)
    task.train()
    assert callback in task.callback_handler.callbacks
    assert steps(tmp_path) == checked(task) == [0, 2, 4, 6, 8]


def test_the_metrics_that_the_trainer_returns_are_its_own(tmp_path: Path) -> None:
    task, _ = watched(tmp_path, evaluated=True, logging_strategy="no", eval_strategy="steps", eval_steps=3)
    result = task.train()
    assert "train_loss" in result.metrics
    assert "epoch" in result.metrics
    assert [tag for tag in result.metrics if "weightwatch" in tag] == []


def test_bad_input_is_refused_and_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    task = trainer(lora(tiny_llama()), tmp_path)
    before = list(task.callback_handler.callbacks)
    with pytest.raises(WeightWatchError, match="Unknown direction 'nothing'"):
        watch(task, "nothing")
    assert task.callback_handler.callbacks == before


def test_a_trainer_is_watched_once(tmp_path: Path) -> None:
    task, _ = watched(tmp_path)
    with pytest.raises(WeightWatchError, match=r"watched already\. Name all directions in one"):
        watch(task, low_rank(tiny_llama(), 6, name="style"))


def test_a_watched_trainer_can_be_pickled_and_logs_the_figures_still(tmp_path: Path) -> None:
    GradientState._reset_state()  # after a training no trainer can be pickled, watched or not
    task = trainer(tiny_llama(), tmp_path, max_steps=2)
    watch(task, low_rank(tiny_llama(), 5), config=STRICT)
    again = pickle.loads(pickle.dumps(task))
    again.train()
    assert checked(again) == [0, 2]
