"""A full fine-tune of half a billion parameters: a check, compared with state-dict differences and memory bandwidth.

The weights are fp32, as with a Trainer under bf16 autocast. θ₀ is a bf16 file, which each check reads; the
directions are bf16. "Of reading" is the number of bytes that a check has to read, over the number that the fastest of
three plain loops reads in the same time.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.directions import dense
from benchmarks.machine import alternate, fastest, peak, ratios, readers, spread
from weightwatch import Direction, Monitor
from weightwatch.measure.kernel import compiled_calls, failure
from weightwatch.vectors.weights.checkpoint import Checkpoint

QWEN_HALF_B = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
Weights: TypeAlias = Mapping[str, Tensor]
READ = 1 << 30
"""Bytes read by each of the plain loops."""
COUNTS = (1, 4)
"""Numbers of directions."""
HEADINGS = (
    "directions",
    "check, ms",
    "naive, s",
    "naive / check",
    "GB/s",
    "of reading",
    "peak MB, check",
    "cosine error, check",
    "cosine error, naive",
)


def base() -> Qwen2ForCausalLM:
    """Return an fp32 model of the shapes of Qwen2.5-0.5B, its values rounded to bf16."""
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**QWEN_HALF_B)).bfloat16().float()


@torch.no_grad()
def move(model: Qwen2ForCausalLM) -> None:
    """Change every weight a little in place, as training would."""
    for parameter in model.parameters():
        parameter.add_(1e-3 * torch.randn_like(parameter))


def warm_up(monitor: Monitor, model: nn.Module) -> None:
    """Measure until the kernel is compiled, which takes a few checks."""
    calls = compiled_calls()
    while compiled_calls() == calls and failure() is None:
        monitor.measure(model)
    if compiled_calls() == calls:
        raise SystemExit(f"The kernel was not compiled: {failure()}")


def naive(now: Weights, before: Weights, directions: list[Weights]) -> list[float]:
    """Subtract two state dicts, flatten, and return the cosines with flattened directions."""
    change = torch.cat([(now[name].float() - before[name].float()).flatten() for name in now])
    lines = (torch.cat([w[name].float().flatten() for name in now]) for w in directions)
    return [F.cosine_similarity(change, line, dim=0).item() for line in lines]


def exact(now: Weights, before: Weights, w: Weights) -> float:
    """Return the cosine, computed in fp64."""
    inner = own = theirs = torch.zeros((), dtype=torch.float64)
    for name in now:
        change, other = now[name].double() - before[name].double(), w[name].double()
        inner, own, theirs = inner + (change * other).sum(), own + (change**2).sum(), theirs + (other**2).sum()
    return float(inner / (own * theirs).sqrt())


def rows(rounds: int, folder: Path) -> list[list[str]]:
    """Time checks with each number of directions. Returns the rows under ``HEADINGS``."""
    model = base()
    before = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    save_file(before, folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    names = [f"direction-{number}" for number in range(max(COUNTS))]
    directions = [Direction.load(dense(model, generator, name).save(folder / name)) for name in names]
    move(model)
    now = {name: p.detach() for name, p in model.named_parameters()}
    reference = Checkpoint(folder)
    found = []
    for count in COUNTS:
        monitor = Monitor(directions[:count], reference=folder)
        lines = [dict(w.deltas) for w in directions[:count]]
        warm_up(monitor, model)
        answers: list[float] = []
        acts: dict[str, Callable[[], object]] = {
            "check": lambda monitor=monitor: monitor.measure(model),
            "naive": lambda lines=lines, answers=answers: answers.extend(naive(now, before, lines)),
        }
        taken = alternate({**acts, **readers(READ)}, rounds, once=["naive"])
        check, slow = taken.pop("check"), taken.pop("naive")
        volume = sum(t.nbytes for part in (now, before, *lines) for t in part.values())
        rates = [volume / value for value in check]
        shares = [rate / (READ / value) for rate, value in zip(rates, fastest(taken), strict=True)]
        reading = monitor.measure(model)
        truth = [exact(now, reference, w) for w in lines]
        found.append(
            [
                str(count),
                spread([1000 * value for value in check], "{:.0f}"),
                spread(slow, "{:.1f}"),
                spread(ratios(slow, check), "{:.0f}"),
                spread([rate / 1e9 for rate in rates], "{:.1f}"),
                spread([100 * share for share in shares], "{:.0f} %"),
                f"{peak(acts['check']):.0f}",
                f"{max(abs(reading[f'direction-{k}'].cosine - c) for k, c in enumerate(truth)):.0e}",
                f"{max(abs(a - b) for a, b in zip(answers, truth, strict=True)):.0e}",
            ]
        )
    return found
