import pickle
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import GradientState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback

from tests.support.models import lora, low_rank, tiny_llama
from tests.support.runs import STRICT, lines, steps, trainer
from weightwatch import WeightWatchCallback, WeightWatchError, watch


class Tracker(TrainerCallback):
    """Takes down what a tracker of ``report_to`` is given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((state.global_step, dict(kwargs["logs"])))


def watched(folder: Path, *callbacks: TrainerCallback, **changes: Any) -> tuple[Trainer, WeightWatchCallback]:
    task = trainer(lora(tiny_llama()), folder, *callbacks, **changes)
    return task, watch(task, [low_rank(tiny_llama(), 5)], config=STRICT)


def figures(logs: dict[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in logs.items() if tag.startswith("weightwatch/")}


def expected(line: dict[str, Any]) -> dict[str, float]:
    found = line["directions"]["evil"]
    metrics = {f"weightwatch/evil/{metric}": found[metric] for metric in ("cosine", "reach_cosine", "dose")}
    return {"weightwatch/update_norm": line["update_norm"], **metrics}


def test_watching_records_what_the_callback_records(tmp_path: Path) -> None:
    task, callback = watched(tmp_path)
    task.train()
    assert callback in task.callback_handler.callbacks
    assert steps(tmp_path) == [0, 2, 4, 6, 8]


def test_every_tracker_gets_the_figures_of_each_check_once_with_its_step(tmp_path: Path) -> None:
    tracker = Tracker()
    watched(tmp_path, tracker)[0].train()
    given = [(step, figures(logs)) for step, logs in tracker.seen if figures(logs)]
    assert given == [(line["step"], expected(line)) for line in lines(tmp_path)[1:]]


def test_the_figures_are_in_the_log_history(tmp_path: Path) -> None:
    task, _ = watched(tmp_path)
    task.train()
    given = [(entry["step"], figures(entry)) for entry in task.state.log_history if figures(entry)]
    assert given == [(line["step"], expected(line)) for line in lines(tmp_path)[1:]]


def test_the_figures_are_in_the_trainers_own_tensorboard_run(tmp_path: Path) -> None:
    watched(tmp_path, report_to=["tensorboard"])[0].train()
    (own,) = [folder for folder in (tmp_path / "runs").iterdir() if folder.name != "weightwatch"]
    found = EventAccumulator(str(own))
    found.Reload()
    curve = [(event.step, event.value) for event in found.Scalars("train/weightwatch/evil/cosine")]
    wanted = [(line["step"], line["directions"]["evil"]["cosine"]) for line in lines(tmp_path)[1:]]
    assert curve == [(step, pytest.approx(value)) for step, value in wanted]
    assert "train/loss" in found.Tags()["scalars"]


def test_a_check_between_two_logs_goes_with_the_next(tmp_path: Path) -> None:
    tracker = Tracker()
    watched(tmp_path, tracker, logging_steps=3, max_steps=6)[0].train()
    given = {step: figures(logs) for step, logs in tracker.seen if figures(logs)}
    by_step = {line["step"]: line for line in lines(tmp_path)}
    assert given == {3: expected(by_step[2]), 6: expected(by_step[6])}


def test_the_metrics_that_the_trainer_returns_are_its_own(tmp_path: Path) -> None:
    task, _ = watched(tmp_path, evaluated=True, logging_strategy="no", eval_strategy="steps", eval_steps=3)
    result = task.train()
    assert "train_loss" in result.metrics
    assert "epoch" in result.metrics
    assert figures(result.metrics) == {}
    assert [entry["step"] for entry in task.state.log_history if figures(entry)] == [3, 6, 8]


def test_bad_input_is_refused_and_leaves_the_trainer_as_it_was(tmp_path: Path) -> None:
    task = trainer(lora(tiny_llama()), tmp_path)
    before = list(task.callback_handler.callbacks)
    with pytest.raises(WeightWatchError, match="Unknown direction 'nothing'"):
        watch(task, "nothing")
    assert task.callback_handler.callbacks == before
    assert "log" not in vars(task)


def test_a_trainer_is_watched_once(tmp_path: Path) -> None:
    task, _ = watched(tmp_path)
    with pytest.raises(WeightWatchError, match=r"watched already\. Name all directions in one"):
        watch(task, low_rank(tiny_llama(), 6, name="style"))


def test_a_log_before_the_first_check_has_no_figures(tmp_path: Path) -> None:
    tracker = Tracker()
    task = trainer(lora(tiny_llama()), tmp_path, tracker, logging_steps=1)
    watch(task, [low_rank(tiny_llama(), 5)], config={**STRICT, "every": 4})
    task.train()
    assert [step for step, logs in tracker.seen if figures(logs)] == [4, 8]


def test_a_watched_trainer_can_be_pickled_and_logs_the_figures_still(tmp_path: Path) -> None:
    GradientState._reset_state()  # after a training no trainer can be pickled, watched or not
    task = trainer(tiny_llama(), tmp_path, max_steps=2)
    watch(task, low_rank(tiny_llama(), 5), config=STRICT)
    again = pickle.loads(pickle.dumps(task))
    again.train()
    assert any("weightwatch/evil/cosine" in entry for entry in again.state.log_history)
