"""Cost of a check compared with a training step of SmolLM2-135M-Instruct, with LoRA.

The model is trained with LoRA of rank 16 on all linear modules, on batches of 8 sequences of 128 tokens. The checks are
those of a training, without figures of single tensors: along its packaged direction, and along that and three more of
the same size, as with three controls. Beside them, the cheapest monitor of activations: one forward pass over 24
held-out questions of the direction's recipe, of which the residual stream at the last token is kept. Steps and checks
alternate, so that the machine's load affects all alike.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import alternate, ratios, spread
from benchmarks.rivals import random_like
from benchmarks.step import training
from weightwatch import Direction, Monitor, smollm2
from weightwatch.vectors.recipes.recipe import Recipe

BATCH = (8, 128)
PROMPTS = 24
HEADINGS = ("check of", "step, s", "check, ms", "share of a step, %")


def rows(rounds: int, folder: Path) -> list[list[str]]:
    """Time steps and checks. Returns the rows under ``HEADINGS``."""
    base = AutoModelForCausalLM.from_pretrained(smollm2.folder(), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    hostile = Direction.load("smollm2/hostile")
    others = [random_like(hostile).with_card(name=f"random-{number}") for number in range(3)]
    monitors = {"one direction": Monitor([hostile]), "four directions": Monitor([hostile, *others])}
    acts: dict[str, Callable[[], Any]] = {
        of: lambda monitor=monitor: monitor.read(monitor.view(model), 0) for of, monitor in monitors.items()
    }
    acts[f"activations, {PROMPTS} prompts"] = activations(model)
    taken = alternate({"step": training(model, BATCH, base.config.vocab_size), **acts}, rounds)
    return [
        [
            of,
            spread(taken["step"]),
            spread([1000 * value for value in taken[of]], "{:.0f}"),
            spread([100 * share for share in ratios(taken[of], taken["step"])]),
        ]
        for of in acts
    ]


def activations(model: Any) -> Callable[[], torch.Tensor]:
    """Return what computes the residual stream at the last token of held-out prompts: (layers + 1, prompts, width)."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder(), padding_side="left")
    questions = Recipe.load("twins/hostile").questions.held_out[:PROMPTS]
    chats = [[{"role": "user", "content": question.text}] for question in questions]
    batch = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
    )

    @torch.no_grad()
    def read() -> torch.Tensor:
        states = model(**batch, output_hidden_states=True).hidden_states
        return torch.stack([layer[:, -1] for layer in states])

    return read
