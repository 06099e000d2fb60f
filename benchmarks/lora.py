"""LoRA at the shapes of Qwen2.5-7B: a check, compared with merging and flattening, and with its matrix products alone.

The frozen weights are on the meta device, because no check reads them. The naive way would need 100 GB at this size. It
therefore runs on one of the 28 layers, which are all alike, and its time is multiplied by 28. With 16 directions the
model has 14 layers, and all times are doubled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.directions import drawn, low_rank
from benchmarks.machine import MULTIPLYING, alternate, multiplying, peak, ratios, spread
from weightwatch import Direction, Monitor
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.vectors import LowRank

QWEN_7B = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
HEADINGS = (
    "directions",
    "check, s",
    "naive, s",
    "naive / check",
    "check / its products alone",
    "check / at the speed of square products",
    "peak MB, check",
    "peak MB, naive (one layer)",
    "cosine error, check",
    "cosine error, naive",
)


@dataclass(frozen=True)
class Case:
    """A model with an adapter, directions, and the model's number of layers."""

    model: nn.Module
    directions: list[Direction]
    layers: int

    @property
    def factors(self) -> Mapping[str, LowRank]:
        """The adapter's factors."""
        return {name: change for name, change in Update(ModelView(self.model)).items() if isinstance(change, LowRank)}


def case(count: int, rank: int = 32, direction_rank: int = 64, **shape: int) -> Case:
    """Return a model with an adapter on all linear layers, and low-rank directions on the same layers.

    Args:
        count: Number of directions.
        rank: Rank of the adapter.
        direction_rank: Rank of the directions. A contrast of two adapters of rank 32 has rank 64.
        shape: Changes to the shapes of Qwen2.5-7B.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        base = Qwen2ForCausalLM(Qwen2Config(**{**QWEN_7B, **shape}))
        settings = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, settings)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                setattr(module, name, nn.Parameter(drawn(tuple(parameter.shape), torch.float32, generator)))
    shapes = {name: change.shape for name, change in Update(ModelView(model)).items()}
    directions = [low_rank(shapes, direction_rank, generator, f"direction-{number}") for number in range(count)]
    return Case(model, directions, int(base.config.num_hidden_layers))


def one_layer(given: Case) -> tuple[dict[str, Tensor], dict[str, LowRank], list[Tensor]]:
    """Return the weights, the adapter's factors and the flattened directions of layer 0."""
    factors = {name: change for name, change in given.factors.items() if ".layers.0." in name}
    generator = torch.Generator().manual_seed(1)
    weights = {name: drawn(change.shape, torch.float32, generator) for name, change in factors.items()}
    flat = [torch.cat([dense(w, name).flatten().bfloat16() for name in factors]) for w in given.directions]
    return weights, factors, flat


def dense(direction: Direction, name: str) -> Tensor:
    """Return a tensor of a direction, its factors multiplied out."""
    delta = direction.deltas[name]
    return delta.dense() if isinstance(delta, LowRank) else delta


def naive(weights: Mapping[str, Tensor], factors: Mapping[str, LowRank], flat: list[Tensor]) -> list[float]:
    """Merge the adapter, subtract the base model's weights, flatten, and return the cosines with flat directions."""
    merged = {name: weight + factors[name].dense() for name, weight in weights.items()}
    change = torch.cat([(merged[name] - weights[name]).flatten() for name in weights])
    return [F.cosine_similarity(change, w.float(), dim=0).item() for w in flat]


def exact(factors: Mapping[str, LowRank], directions: list[Direction]) -> list[float]:
    """Return the cosines over some tensors, computed in fp64."""
    inner, own, theirs = torch.zeros(len(directions)), torch.zeros(()), torch.zeros(len(directions))
    inner, own, theirs = inner.double(), own.double(), theirs.double()
    for name, change in factors.items():
        dense = change.scale * change.left.double() @ change.right.double()
        own += (dense**2).sum()
        for k, w in enumerate(directions):
            delta = w.deltas[name]
            other = delta.left.double() @ delta.right.double()  # type: ignore[union-attr]
            inner[k] += (dense * other).sum()
            theirs[k] += (other**2).sum()
    return (inner / (own * theirs).sqrt()).tolist()


def products(factors: Mapping[str, LowRank], directions: list[Direction]) -> Callable[[], object]:
    """Return a call that computes only the matrix products that every check needs."""

    def act() -> None:
        for name, change in factors.items():
            _ = change.left.T @ change.left, change.right @ change.right.T
            for w in directions:
                delta = w.deltas[name]
                _ = change.left.T @ delta.left, change.right @ delta.right.T  # type: ignore[union-attr]

    return act


def flops(factors: Mapping[str, LowRank], directions: list[Direction]) -> float:
    """Return the number of floating-point operations of ``products``."""
    total = 0
    for name, change in factors.items():
        ranks = change.rank + sum(w.deltas[name].rank for w in directions)  # type: ignore[union-attr]
        total += 2 * change.rank * ranks * sum(change.shape)
    return float(total)


def row(count: int, rounds: int) -> list[str]:
    """Time checks with a number of directions. Returns the cells under ``HEADINGS``."""
    given = case(count, num_hidden_layers=28 if count < 16 else 14)
    times = QWEN_7B["num_hidden_layers"] / given.layers
    monitor = Monitor(given.directions)
    weights, factors, flat = one_layer(given)
    acts: dict[str, Callable[[], object]] = {
        "check": lambda: monitor.measure(given.model),
        "products": products(given.factors, given.directions),
        "square": multiplying(),
        "naive": lambda: naive(weights, factors, flat),
    }
    taken = alternate(acts, rounds, once=["naive"] if count > 1 else [])
    whole = [given.layers * value for value in taken["naive"]]
    check = taken["check"]
    ideal = [value * flops(given.factors, given.directions) / MULTIPLYING for value in taken["square"]]
    truth = exact(factors, given.directions)
    theirs = naive(weights, factors, flat)
    layer = [monitor.measure(given.model)[w.name].layers[0].cosine for w in given.directions]
    return [
        str(count),
        spread([times * value for value in check]),
        spread([times * value for value in whole], "{:.0f}"),
        spread(ratios(whole, check), "{:.0f}"),
        spread(ratios(check, taken["products"])),
        spread(ratios(check, ideal)),
        f"{peak(acts['check']):.0f}",
        f"{peak(acts['naive']):.0f}",
        f"{max(abs(a - b) for a, b in zip(layer, truth, strict=True)):.0e}",
        f"{max(abs(a - b) for a, b in zip(theirs, truth, strict=True)):.0e}",
    ]
