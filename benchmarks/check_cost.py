"""What a check costs beside a training step: ``python benchmarks/check_cost.py``.

A Llama of 110M parameters is trained with LoRA (r=16, all linear layers) on batches of 4 sequences of 512 tokens. Steps
and checks alternate, so that both meet the same load of the machine; the medians are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from weightwatch import Direction, Monitor
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
RANK = 16
DIRECTION_RANK = 32  # a contrast of two adapters of rank 16


def direction(base: torch.nn.Module, name: str) -> Direction:
    """Return a direction in factors on every linear layer."""
    deltas = {
        f"{path}.weight": LowRank(
            torch.randn(module.out_features, DIRECTION_RANK), torch.randn(DIRECTION_RANK, module.in_features)
        )
        for path, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in path
    }
    return Direction.from_tensors(deltas, name=name)


def seconds(act: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def spread(values: list[float]) -> str:
    """Return median and quartiles, in milliseconds."""
    low, middle, high = statistics.quantiles([value * 1000 for value in values], n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="steps measured; one more warms up")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE))
    directions = [direction(base, f"direction-{number}") for number in range(4)]
    size = sum(parameter.numel() for parameter in base.parameters())
    model = get_peft_model(base, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    monitors = {count: Monitor(directions[:count]) for count in (1, 4)}

    def step() -> None:
        ids = torch.randint(0, SHAPE["vocab_size"], (given.batch, given.length))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    steps: list[float] = []
    checks: dict[int, list[float]] = {count: [] for count in monitors}
    for number in track(range(given.rounds + 1), "measuring"):
        took = seconds(step)
        for count, monitor in monitors.items():
            check = seconds(lambda monitor=monitor: monitor.measure(model))  # type: ignore[misc]
            if number:
                checks[count].append(check)
        if number:
            steps.append(took)

    title = (
        f"{size / 1e6:.0f}M parameters, LoRA r={RANK}, batch {given.batch} x {given.length}, {given.threads} threads"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("", "ms, median (quartiles)", "share of a step", "from", "to"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("training step", spread(steps), "", "", "")
    for count, values in checks.items():
        shares = [check / took for check, took in zip(values, steps, strict=True)]
        middle = statistics.median(values) / statistics.median(steps)
        name = f"check, {count} direction{'s' if count > 1 else ''}"
        table.add_row(name, spread(values), f"{middle:.2%}", f"{min(shares):.2%}", f"{max(shares):.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
