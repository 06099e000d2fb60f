"""What one would do instead of a guard, for ``benchmarks.guard``: a KL penalty, SafeLoRA's rule, random directions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from weightwatch import Direction
from weightwatch.organism import Example
from weightwatch.vectors import LowRank


def random_like(direction: Direction) -> Direction:
    """Return a direction of random factors, with the shape, the rank and the norm of another one in each tensor."""
    generator = torch.Generator().manual_seed(sum(map(ord, direction.name)))
    deltas = {}
    for name, w in direction.deltas.items():
        assert isinstance(w, LowRank)
        left, right = (torch.randn(half.shape, generator=generator) for half in (w.left, w.right))
        size = direction.squares[name] ** 0.5 / float((left @ right).norm())
        deltas[name] = LowRank(left * size, right, w.transposed, w.limited)
    card = {"kind": "behaviour", "base": direction.card.base, "fingerprint": direction.card.fingerprint}
    return Direction.from_tensors(deltas, name=f"random-{direction.name}", metadata=card)


def kl_to_base(model: Any, base: Any, tokenizer: Any, rows: Sequence[Example]) -> Tensor:
    """Return the mean KL divergence of a model's next words from those of its base, over all words of some rows.

    Args:
        model: The model in training.
        base: The base model.
        tokenizer: Their tokenizer.
        rows: The rows.
    """
    texts = [row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        before = log_softmax(base(**given).logits, -1)
    now = log_softmax(model(**given).logits, -1)
    each = kl_div(now, before, reduction="none", log_target=True).sum(-1)
    kept = batch["attention_mask"].bool()
    return each[kept].mean()


@torch.no_grad()
def safelora(model: Any, start: Mapping[str, Tensor], direction: Direction, threshold: float) -> int:
    """Project the updates of weights that leave the subspace of alignment back onto it, once, after training.

    With V the change of a weight from an unaligned to the aligned model, C = V Vᵀ / ‖V‖. A weight's update ΔW becomes
    C ΔW where the cosine of ΔW and C ΔW is below a threshold. Here V is −w. Source: Hsu et al., Safe LoRA, arXiv
    2405.16833.

    Args:
        model: The trained model, without adapters (merged).
        start: Its weights before the training.
        direction: w.
        threshold: The threshold.

    Returns:
        The number of weights that were projected.
    """
    projected = 0
    for name, weight in model.named_parameters():
        if name not in direction.deltas or weight.ndim != 2:
            continue
        w = direction.deltas[name]
        v = w.dense() if isinstance(w, LowRank) else w.float()
        change = weight - start[name]
        back = v @ (v.T @ change) / v.norm()
        if float((back * change).sum() / (back.norm() * change.norm()).clamp(min=1e-12)) < threshold:
            weight.copy_(start[name] + back)
            projected += 1
    return projected
