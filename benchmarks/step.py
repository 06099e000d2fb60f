"""Cost of a check compared with a training step of the same model, with LoRA and in a full fine-tune.

A Llama of 110M parameters is trained on batches of 4 sequences of 512 tokens. Steps and checks alternate, so that the
load of the machine affects both alike.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.directions import dense, low_rank
from benchmarks.full import COUNTS, warm_up
from benchmarks.machine import alternate, ratios, spread
from weightwatch import Monitor

SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "tie_word_embeddings": True,
}
BATCH = (4, 512)
RANK = 16
HEADINGS = ("training", "directions", "step, s", "check, ms", "share of a step, %")


def rows(rounds: int, folder: Path) -> list[list[str]]:
    """Time steps and checks in both kinds of training. Returns the rows under ``HEADINGS``."""
    found = []
    for kind in ("LoRA r=16", "full"):
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**SHAPE))
        named = [(f"direction-{number}", torch.Generator().manual_seed(number)) for number in range(max(COUNTS))]
        if kind == "full":
            save_file({name: p.detach().clone() for name, p in base.named_parameters()}, folder / "model.safetensors")
            directions, reference = [dense(base, generator, name) for name, generator in named], folder
            model: nn.Module = base
        else:
            shapes = {
                f"{path}.weight": tuple(module.weight.shape)
                for path, module in base.named_modules()
                if isinstance(module, nn.Linear) and "lm_head" not in path
            }
            directions = [low_rank(shapes, 2 * RANK, generator, name) for name, generator in named]
            reference = None
            model = get_peft_model(base, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
        acts: dict[str, Callable[[], object]] = {"step": training(model)}
        for count in COUNTS:
            monitor = Monitor(directions[:count], reference=reference)
            if kind == "full":
                warm_up(monitor, model)
            acts[str(count)] = lambda monitor=monitor, model=model: monitor.measure(model)
        taken = alternate(acts, rounds)
        for count in COUNTS:
            shares = [100 * share for share in ratios(taken[str(count)], taken["step"])]
            check = [1000 * value for value in taken[str(count)]]
            found.append([kind, str(count), spread(taken["step"]), spread(check, "{:.0f}"), spread(shares)])
    return found


def training(
    model: nn.Module, batch: tuple[int, int] = BATCH, vocabulary: int = int(SHAPE["vocab_size"])
) -> Callable[[], object]:
    """Return a call that takes one training step on random tokens: so many sequences of so many of them."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        with torch.enable_grad():
            ids = torch.randint(0, vocabulary, batch)
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
