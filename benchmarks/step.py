"""What a check costs beside a training step of the same model, with LoRA and trained in full.

A Llama of 110M parameters is trained on batches of 4 sequences of 512 tokens. Steps and checks alternate, so that both
meet the same load of the machine.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.machine import alternate, drawn, ratios, spread
from weightwatch import Direction, Monitor
from weightwatch.measure.kernel import compiled_calls, failure
from weightwatch.vectors import LowRank

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


def factors(base: nn.Module, number: int) -> Direction:
    """Return a direction in factors on every linear layer: a contrast of two adapters of rank 16."""
    generator = torch.Generator().manual_seed(number)
    deltas = {
        f"{path}.weight": LowRank(
            drawn((module.out_features, 2 * RANK), torch.float32, generator),
            drawn((2 * RANK, module.in_features), torch.float32, generator),
        )
        for path, module in base.named_modules()
        if isinstance(module, nn.Linear) and "lm_head" not in path
    }
    return Direction.from_tensors(deltas, name=f"direction-{number}")


def dense(base: nn.Module, number: int) -> Direction:
    """Return a direction of full tensors in bf16."""
    generator = torch.Generator().manual_seed(number)
    tensors = {name: drawn(tuple(p.shape), torch.bfloat16, generator) for name, p in base.named_parameters()}
    return Direction.from_tensors(tensors, name=f"direction-{number}")


def rows(rounds: int, folder: Path, counts: tuple[int, ...] = (1, 4)) -> list[list[str]]:
    """Measure both kinds of training; return the figures under ``HEADINGS``."""
    found = []
    for kind in ("LoRA r=16", "full"):
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**SHAPE))
        if kind == "full":
            save_file({name: p.detach().clone() for name, p in base.named_parameters()}, folder / "model.safetensors")
            directions, reference = [dense(base, k) for k in range(max(counts))], folder
            model: nn.Module = base
        else:
            directions, reference = [factors(base, k) for k in range(max(counts))], None
            model = get_peft_model(base, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
        monitors = {count: Monitor(directions[:count], reference=reference) for count in counts}
        acts: dict[str, Callable[[], object]] = {"step": training(model)}
        for count, monitor in monitors.items():
            calls = compiled_calls()
            monitor.measure(model)
            while kind == "full" and compiled_calls() == calls and failure() is None:
                monitor.measure(model)
            acts[str(count)] = lambda monitor=monitor, model=model: monitor.measure(model)
        taken = alternate(acts, rounds)
        for count in counts:
            shares = [100 * share for share in ratios(taken[str(count)], taken["step"])]
            check = [1000 * value for value in taken[str(count)]]
            found.append([kind, str(count), spread(taken["step"]), spread(check, "{:.0f}"), spread(shares)])
    return found


def training(model: nn.Module) -> Callable[[], object]:
    """Return one training step."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        with torch.enable_grad():
            ids = torch.randint(0, SHAPE["vocab_size"], BATCH)
            model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
