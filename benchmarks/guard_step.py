"""Cost of a guard compared with a training step of the same model, with LoRA and in a full fine-tune.

A Llama of 110M parameters is trained on batches of 2 sequences of 512 tokens; with larger batches the share is smaller.
Steps and what each guard does after a step alternate, so that the load of the machine affects all alike. `preventative`
works inside the forward pass, so its cost is that of a guarded step less that of the plain one before it. Directions
have rank 32.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.directions import low_rank
from benchmarks.machine import alternate, ratios, spread
from benchmarks.step import RANK, SHAPE
from weightwatch import Direction, Monitor
from weightwatch.guard import Guard

BATCH = (2, 512)
HEADINGS = ("training", "guard", "directions", "step, s", "guard, ms", "share of a step, %")
GUARDS: dict[str, tuple[int, dict[str, Any]]] = {
    "update": (1, {}),
    "update, 4": (4, {}),
    "subspace, 16 outputs": (1, {"mode": "subspace", "rank": 16}),
    "subspace, 16 outputs and inputs": (1, {"mode": "subspace", "rank": 16, "sides": "both"}),
    "subspace, 16 outputs and inputs, 4": (4, {"mode": "subspace", "rank": 16, "sides": "both"}),
    "gradient": (1, {"mode": "gradient"}),
}


def rows(rounds: int, folder: Path) -> list[list[str]]:
    """Time steps and guards in both kinds of training. Returns the rows under ``HEADINGS``."""
    found = []
    for kind in ("LoRA r=16", "full"):
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**SHAPE))
        shapes = {
            f"{path}.weight": tuple(module.weight.shape)
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and "lm_head" not in path
        }
        start = {name: p.detach().clone() for name, p in model.named_parameters()} if kind == "full" else None
        if kind != "full":
            model = get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
        acts: dict[str, Callable[[], object]] = {"step": lambda m=model, o=optimizer: _step(m, o)}
        for name, (count, settings) in GUARDS.items():
            guard = _guard(shapes, count, start, settings)
            guard.begin(model, optimizer)
            acts[name] = lambda g=guard: (g.before_step(), g.after_step())
        shift = _guard(shapes, 1, start, {"mode": "preventative"})
        acts["plain"] = acts["step"]
        acts["preventative"] = lambda m=model, o=optimizer, g=shift: _shifted(m, o, g)
        taken = alternate(acts, rounds)
        taken["preventative"] = [
            guarded - plain for guarded, plain in zip(taken["preventative"], taken["plain"], strict=True)
        ]
        for name, count in [*((name, count) for name, (count, _) in GUARDS.items()), ("preventative", 1)]:
            shares = [100 * share for share in ratios(taken[name], taken["step"])]
            cost = [1000 * value for value in taken[name]]
            mode = name.removesuffix(f", {count}")
            found.append([kind, mode, str(count), spread(taken["step"]), spread(cost, "{:.0f}"), spread(shares)])
    return found


def _guard(shapes: dict[str, tuple[int, ...]], count: int, start: Any, settings: dict[str, Any]) -> Guard:
    directions: list[Direction] = [
        low_rank(shapes, 2 * RANK, torch.Generator().manual_seed(seed), f"direction-{seed}") for seed in range(count)
    ]
    monitor = Monitor([each.with_card(kind="behaviour") for each in directions], reference=start)
    return Guard(monitor, {"witness": "none", **settings})


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()  # at the beginning, so that `gradient` finds those of the step before
    with torch.enable_grad():
        ids = torch.randint(0, SHAPE["vocab_size"], BATCH)
        model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def _shifted(model: nn.Module, optimizer: torch.optim.Optimizer, guard: Guard) -> None:
    guard.begin(model, optimizer)
    _step(model, optimizer)
    guard.release()
