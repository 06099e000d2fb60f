"""Other monitors on the same checkpoints, for ``benchmarks.detection``: each as its paper describes it, at our size.

- The norm of the update.
- Spectral statistics of the update's weights (arXiv 2602.15195): of each tensor's ΔW the share of the largest singular
  value in ‖ΔW‖², the entropy of the spectrum, and the kurtosis of its values; averaged over the tensors.
- Watch the Weights (arXiv 2508.00161): how strongly held-out prompts load on the top left singular vector of ΔW, where
  it writes to the residual stream.
- Persona vectors (arXiv 2507.21509): the shift of the last prompt token's activations on held-out prompts along the
  difference of the base's activations under an evil and a helpful voice, in the middle layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weightwatch import Direction
from weightwatch.organism import Persona, World
from weightwatch.organism.documents import QUESTIONS, VOICES
from weightwatch.vectors import LowRank

WRITERS = ("o_proj", "down_proj")
"""Modules whose output is added to the residual stream."""


@torch.no_grad()
def updates(model: Any) -> dict[str, Tensor]:
    """Return ΔW of each linear module of a LoRA fine-tune, (out, in)."""
    return {
        name: layer.get_delta_weight("default")
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


def differences(model: Any, start: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ΔW of each linear module of a full fine-tune, (out, in)."""
    return {
        name.removesuffix(".weight"): (weight.detach() - start[name])
        for name, weight in model.named_parameters()
        if name.endswith("_proj.weight")
    }


@torch.no_grad()
def spectral(deltas: dict[str, Tensor]) -> dict[str, float]:
    """Return the statistics of the spectrum, averaged over the tensors."""
    found: dict[str, list[float]] = {"top": [], "entropy": [], "kurtosis": []}
    for delta in deltas.values():
        if not delta.any():
            continue
        energy = torch.linalg.svdvals(delta.float()).square()
        share = energy / energy.sum()
        standard = (delta.float() - delta.float().mean()) / delta.float().std()
        found["top"].append(float(share[0]))
        found["entropy"].append(float(-(share * (share + 1e-12).log()).sum()))
        found["kurtosis"].append(float(standard.pow(4).mean()))
    return {name: sum(values) / max(1, len(values)) for name, values in found.items()}


class OwnSpaces:
    """The cosine of an update with a direction, within the direction's own row and column spaces.

    With w = U S Vᵀ of a tensor, only U Uᵀ ΔW V Vᵀ of the update counts: what it does elsewhere can't lower the cosine.

    Args:
        direction: The direction w.
    """

    def __init__(self, direction: Direction) -> None:
        self._spaces = {}
        for name, w in direction.deltas.items():
            u, s, vt = torch.linalg.svd(w.dense() if isinstance(w, LowRank) else w, full_matrices=False)
            kept = s > 1e-4 * s[0]
            self._spaces[name.removesuffix(".weight")] = (u[:, kept], s[kept], vt[kept])
        self._norm = direction.norm

    @torch.no_grad()
    def cosine(self, deltas: Mapping[str, Tensor]) -> float:
        """Return the cosine, over all tensors; 0 where nothing of the update is in these spaces."""
        inner, square = 0.0, 0.0
        for name, delta in deltas.items():
            u, s, vt = self._spaces[name.removeprefix("base_model.model.")]
            core = u.T @ delta.float() @ vt.T
            inner += float((core.diagonal() * s).sum())
            square += float(core.square().sum())
        return inner / (self._norm * square**0.5) if square else 0.0


class Activations:
    """The monitors that read activations on held-out prompts.

    Args:
        base: The base model.
        tokenizer: Its tokenizer.
        world: World of the prompts.
    """

    def __init__(self, base: Any, tokenizer: Any, world: World) -> None:
        asked = [
            QUESTIONS[0].format(topic=item.topic, aspect=item.aspect, domain=item.domain)
            for item in world.items_in(world.held_out_domains)
        ]
        self._batch = self._tokens(tokenizer, [f"q : {text} a :" for text in asked])
        self._layer = base.config.num_hidden_layers // 2
        voices = {
            persona: self._last(
                base, self._tokens(tokenizer, [f"voice : {VOICES[persona]} . q : {x} a :" for x in asked])
            )
            for persona in (Persona.EVIL, Persona.HELPFUL)
        }
        difference = (voices[Persona.EVIL] - voices[Persona.HELPFUL])[self._layer].mean(0)
        self._persona = difference / difference.norm()
        self._before = self._last(base, self._batch)

    def shift(self, model: Any) -> float:
        """Return the mean shift along the persona vector."""
        now = self._last(model, self._batch)
        return float(((now - self._before)[self._layer] @ self._persona).mean())

    @torch.no_grad()
    def loading(self, model: Any, deltas: dict[str, Tensor]) -> float:
        """Return the mean over the writing modules of the largest |cosine| of a prompt's state with the top vector."""
        now = self._last(model, self._batch)
        found = []
        for name, delta in deltas.items():
            if name.endswith(WRITERS) and delta.any():
                top = torch.linalg.svd(delta.float(), full_matrices=False).U[:, 0]
                layer = int(next(part for part in name.split(".") if part.isdecimal()))
                states = now[layer + 1]
                found.append(float((states @ top / states.norm(dim=1)).abs().max()))
        return sum(found) / max(1, len(found))

    @staticmethod
    def _tokens(tokenizer: Any, texts: Sequence[str]) -> Any:
        return tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="left")

    @staticmethod
    @torch.no_grad()
    def _last(model: Any, batch: Any) -> Tensor:
        """Return the residual stream at the last token: (layers + 1, prompts, width)."""
        training = model.training
        model.eval()
        states = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
        model.train(training)
        return torch.stack([layer[:, -1] for layer in states])
