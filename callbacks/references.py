"""Harmless reference runs, trained on resamples of data that the user trusts."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightwatch.callbacks.trainer import WeightWatchCallback
from weightwatch.config import Config
from weightwatch.record.history import History
from weightwatch.report.quiet import quiet
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import write_text

SETTINGS = "references.json"
"""File in the folder of reference runs with their settings."""


@dataclass(frozen=True)
class ReferenceRuns:
    """How reference runs are trained: as the runs will be that the calibration is for.

    Attributes:
        model: Folder or Hub id of the base model.
        data: JSON lines in a form that TRL's ``SFTTrainer`` reads: ``prompt`` and ``completion``, ``messages`` or
            ``text``.
        config: What is watched, and how often. Its rules and its guard are not used.
        folder: Where the runs are kept, one folder for each.
        steps: Optimizer steps of a run.
        batch_size: Examples of a step.
        rank: Rank of LoRA on all linear modules; 0 for a full fine-tune.
        learning_rate: Highest learning rate. The schedule is linear.
    """

    model: str
    data: Path
    config: Config
    folder: Path
    steps: int = 200
    batch_size: int = 8
    rank: int = 16
    learning_rate: float = 1e-4

    def train(self, runs: int, progress: Callable[[int], None] = lambda done: None) -> list[Path]:
        """Train the runs that are missing, and return the folders of all.

        Run number i learns from as many rows as there are, drawn with replacement, with seed i. A run that is complete
        is not trained again, and one that was interrupted begins anew.

        Args:
            runs: Number of runs.
            progress: Called with the number of complete runs.

        Raises:
            WeightWatchError: The data can't be read, the folder has runs of other settings, or a direction can't be
                measured on the model.
        """
        self._take_folder()
        homes = [self.folder / f"run-{number:03}" for number in range(1, runs + 1)]
        for number, home in enumerate(homes, 1):
            progress(number - 1)
            last = History(home / "weightwatch").last_reading()
            if last is None or last.step < self.steps:
                shutil.rmtree(home, ignore_errors=True)
                with quiet():
                    self._train(home, number)
        progress(runs)
        return homes

    def _take_folder(self) -> None:
        """Note the settings in the folder, or compare them with those of the runs in it."""
        try:
            data = hashlib.sha256(self.data.read_bytes()).hexdigest()
        except OSError as error:
            raise WeightWatchError(
                f"{self.data} can't be read: {error.strerror}. Name a file of JSON lines."
            ) from error
        wanted = {
            "model": self.model,
            "data": data,
            "watched": [*self.config.directions, *self.config.controls],
            "every": self.config.every,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "rank": self.rank,
            "learning_rate": self.learning_rate,
        }
        note = self.folder / SETTINGS
        try:
            known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else wanted
        except (OSError, ValueError) as error:
            raise WeightWatchError(
                f"{note} is damaged, so it can't be told of which runs {self.folder} is. Pass another --folder, or "
                "remove it."
            ) from error
        other = [name for name, value in wanted.items() if known.get(name) != value]
        if other:
            raise WeightWatchError(
                f"{self.folder} has reference runs with another {', '.join(other)}. Pass another --folder, or remove "
                "it."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(wanted, indent=1) + "\n")

    def _train(self, home: Path, seed: int) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
        from trl import SFTConfig, SFTTrainer

        try:
            rows = Dataset.from_json(str(self.data), keep_in_memory=True)
        except Exception as error:  # datasets raises many kinds
            raise WeightWatchError(f"{self.data} can't be read as JSON lines: {error}") from error
        rng = random.Random(seed)
        drawn = rows.select([rng.randrange(len(rows)) for _ in range(len(rows))])
        on_gpu = torch.cuda.is_available()
        silent: dict[str, Any] = {
            "rules": [],
            "notify": [],
            "guard": None,
            "tensorboard": False,
            "summary": False,
            "on_error": "raise",
        }
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(
                self.model, dtype=torch.bfloat16 if on_gpu and self.rank else torch.float32, trust_remote_code=False
            ),
            args=SFTConfig(
                str(home),
                max_steps=self.steps,
                per_device_train_batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                logging_steps=self.steps,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=not on_gpu,
                bf16=on_gpu,
                gradient_checkpointing=on_gpu,
                seed=seed,
            ),
            train_dataset=drawn,
            processing_class=AutoTokenizer.from_pretrained(self.model, trust_remote_code=False),
            peft_config=LoraConfig(r=self.rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
            if self.rank
            else None,
            callbacks=[WeightWatchCallback(config=self.config.model_copy(update=silent))],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
