"""Real trainings of the tiny models: data, trainers and tokenizers made here, and readings made by hand."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments

from tests.support.models import tiny_llama
from weightwatch.reading.grouping import Layer
from weightwatch.reading.reading import DirectionReading, Reading, Score

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(45))]
STRICT: dict[str, Any] = {"every": 2, "on_error": "raise", "summary": False}
"""Settings under which a fault of the monitoring fails the test."""


def sequences(count: int = 64, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 48, (count, 8), generator=generator).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])


def words() -> PreTrainedTokenizerFast:
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return tokenizer


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 2, "bf16": False}
    steps = {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "max_steps": 8, "save_strategy": "no"}
    return {"output_dir": str(folder), **quiet, **steps, **changes}


def trainer(
    model: torch.nn.Module, folder: Path, *callbacks: TrainerCallback, evaluated: bool = False, **changes: Any
) -> Trainer:
    data = sequences()
    return Trainer(
        model,
        TrainingArguments(**settings(folder, **changes)),
        train_dataset=data,
        eval_dataset=data.select(range(4)) if evaluated else None,
        callbacks=list(callbacks),
    )


def full(folder: Path, step: int | None = None, **how: Any) -> Path:
    """Save a checkpoint of full weights, with the state of a Trainer if a step is given."""
    tiny_llama().save_pretrained(folder, **how)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


class At(TrainerCallback):
    """Does something to the run in the course of one step, before the weights are checked."""

    def __init__(self, step: int, act: Callable[..., None]) -> None:
        self.step = step
        self.act = act

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            self.act(kwargs["model"])


def lines(folder: Path, name: str = "readings.jsonl") -> list[dict[str, Any]]:
    path = folder / "weightwatch" / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in lines(folder)]


def timeless(folder: Path, name: str = "readings.jsonl") -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in lines(folder, name)]


def score(value: float, **changes: Any) -> Score:
    figures = {"cosine": value, "reach_cosine": value, "dose": value, "reach": 1.0, "share": value, "z": None}
    return Score(**{**figures, **changes})


def reading(
    step: int,
    value: float,
    *,
    layers: Sequence[float] | Mapping[Layer, float] = (),
    modules: Mapping[str, float] | None = None,
    checkpoint: str | None = None,
    norm: float = 1.0,
    **figures: Any,
) -> Reading:
    """Return a reading of the direction ``evil`` whose figures all have one value."""
    by_layer = layers if isinstance(layers, Mapping) else dict(enumerate(layers))
    found = DirectionReading(
        **vars(score(value, **figures)),
        layers={i: score(part) for i, part in by_layer.items()},
        modules={name: score(part) for name, part in (modules or {}).items()},
    )
    return Reading(step, f"2026-01-01T00:00:{step:02d}.000+00:00", norm, {"evil": found}, checkpoint)
