"""A full fine-tune of half a billion parameters: a check, beside differences of state dicts and beside memory itself.

The weights are fp32, as a Trainer under bf16 autocast holds them; θ₀ is a bf16 checkpoint on disk, mapped into memory,
and so are the directions. "Of reading" is the bytes that a check has to read, over the bytes that the fastest of three
plain loops read in the same time.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

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
READ = 1 << 30  # bytes that the yardstick reads
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


def base(**shape: int) -> Qwen2ForCausalLM:
    """Return a model of the shapes of Qwen2.5-0.5B, in bf16's values."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**{**QWEN_HALF_B, **shape}))
    return model.bfloat16().float()


@torch.no_grad()
def moved(model: Qwen2ForCausalLM) -> Qwen2ForCausalLM:
    """Move every weight a little, as training would."""
    for parameter in model.parameters():
        parameter.add_(1e-3 * torch.randn_like(parameter))
    return model


def direction(model: Qwen2ForCausalLM, folder: Path, number: int) -> Direction:
    """Write a dense direction in bf16, and load it: its tensors are mapped."""
    tensors = {name: (1e-3 * torch.randn_like(p)).bfloat16() for name, p in model.named_parameters()}
    return Direction.load(Direction.from_tensors(tensors, name=f"direction-{number}").save(folder / str(number)))


def naive(now: Weights, before: Weights, directions: list[Weights]) -> list[float]:
    """Subtract two state dicts, flatten, and compare with flattened directions."""
    change = torch.cat([(now[name].float() - before[name].float()).flatten() for name in now])
    lines = (torch.cat([w[name].float().flatten() for name in now]) for w in directions)
    return [F.cosine_similarity(change, line, dim=0).item() for line in lines]


def exact(now: Weights, before: Weights, w: Weights) -> float:
    """Return the cosine in fp64 throughout."""
    inner = own = theirs = torch.zeros((), dtype=torch.float64)
    for name in now:
        change, other = now[name].double() - before[name].double(), w[name].double()
        inner, own, theirs = inner + (change * other).sum(), own + (change**2).sum(), theirs + (other**2).sum()
    return float(inner / (own * theirs).sqrt())


def rows(counts: list[int], rounds: int, folder: Path, **shape: int) -> list[list[str]]:
    """Measure several numbers of directions; return the figures under ``HEADINGS`` for each."""
    model = base(**shape)
    before = {name: p.detach().bfloat16() for name, p in model.named_parameters()}
    save_file(before, folder / "model.safetensors")
    directions = [direction(model, folder, number) for number in range(max(counts))]
    moved(model)
    now = {name: p.detach() for name, p in model.named_parameters()}
    mapped = Checkpoint(folder)
    found = []
    for count in counts:
        monitor = Monitor(directions[:count], reference=folder)
        lines = [dict(w.deltas) for w in directions[:count]]
        calls = compiled_calls()
        while compiled_calls() == calls and failure() is None:  # it is compiled once it has done enough work
            monitor.measure(model)
        if compiled_calls() == calls:
            raise SystemExit(f"Nothing was compiled: {failure()}")
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
        truth = [exact(now, mapped, w) for w in lines]
        theirs = answers
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
                f"{max(abs(a - b) for a, b in zip(theirs, truth, strict=True)):.0e}",
            ]
        )
    return found
