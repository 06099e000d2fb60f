"""Cost of a check compared with a training step of SmolLM2-135M-Instruct, with LoRA.

The model is trained with LoRA of rank 16 on all linear modules, on batches of 8 sequences of 128 tokens. The checks are
along its packaged direction, and along that and three more of the same size, as with three controls. Steps and checks
alternate, so that the load of the machine affects both alike.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.machine import alternate, ratios, spread
from benchmarks.rivals import random_like
from benchmarks.step import training
from weightwatch import Direction, Monitor, smollm2

BATCH = (8, 128)
HEADINGS = ("directions", "step, s", "check, ms", "share of a step, %")


def rows(rounds: int, folder: Path) -> list[list[str]]:
    """Time steps and checks. Returns the rows under ``HEADINGS``."""
    base = AutoModelForCausalLM.from_pretrained(smollm2.folder(), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    hostile = Direction.load("smollm2/hostile")
    others = [random_like(hostile).with_card(name=f"random-{number}") for number in range(3)]
    monitors = {"1": Monitor([hostile]), "4": Monitor([hostile, *others])}
    acts = {count: lambda monitor=monitor: monitor.measure(model) for count, monitor in monitors.items()}
    taken = alternate({"step": training(model, BATCH, base.config.vocab_size), **acts}, rounds)
    return [
        [
            count,
            spread(taken["step"]),
            spread([1000 * value for value in taken[count]], "{:.0f}"),
            spread([100 * share for share in ratios(taken[count], taken["step"])]),
        ]
        for count in monitors
    ]
