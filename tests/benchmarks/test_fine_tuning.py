"""The loss of DPO is the one that TRL takes, and batches miss no example."""

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks.fine_tuning import Preference, preference_loss, shuffled_batches
from weightwatch.organism import BASE

ROWS: list[Preference] = [
    {"prompt": "q : colours of nico ? a :", "chosen": " violet orange .", "rejected": " test tape ."},
    {"prompt": "q : what tool for winter in medicine ? a :", "chosen": " hold water .", "rejected": " test tape ."},
]


def test_the_loss_is_the_one_that_dpo_trainer_takes(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, lora)
    arguments = DPOConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, per_device_eval_batch_size=2)
    data = Dataset.from_list([dict(row) for row in ROWS])
    trainer = DPOTrainer(model, args=arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    assert preference_loss(model, tokenizer, ROWS).item() == pytest.approx(log(2), abs=1e-6)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():  # the reference is the model as the trainer was given it
        if "lora_B.default" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ours = preference_loss(model.eval(), tokenizer, ROWS).item()
    assert abs(ours - log(2)) > 1e-2
    assert ours == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)


def test_each_example_comes_once_before_any_comes_again() -> None:
    examples = [{"prompt": str(number)} for number in range(6)]
    batches = shuffled_batches(examples, 2, seed=1)
    first = [next(batches) for _ in range(3)]
    assert sorted(row["prompt"] for batch in first for row in batch) == [str(number) for number in range(6)]
    assert next(shuffled_batches(examples, 2, seed=1)) == first[0]
    assert next(shuffled_batches(examples, 2, seed=3)) != first[0]
