"""What a reading must say, the slow way: in fp64, with every change of a weight multiplied out.

Written from the definitions in the documentation alone. A change is the weights of a merged copy of the model less
those of a merged copy of its start; the projection is an explicit pseudo-inverse of the adapter's A; a figure is a
division of flattened vectors.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from weightwatch.reading import Reading, Score
from weightwatch.vectors import Direction, LowRank

Weights = Mapping[str, Tensor]


@dataclass
class Trained:
    """One trained tensor: its change, how w is seen through it, and how many of its elements training can choose."""

    change: Tensor
    projector: Tensor | None = None
    side: str = "right"
    freedom: int = 0

    def project(self, w: Tensor) -> Tensor:
        if self.projector is None:
            return w
        return w @ self.projector if self.side == "right" else self.projector @ w


@dataclass
class Expected:
    """The tensors of an update, and the figures that follow from them."""

    trained: dict[str, Trained] = field(default_factory=dict)

    def score(self, names: Iterable[str], w: Weights, controls: Sequence[Weights] = ()) -> Score:
        """Return the score of a part of the model: the figures of the concatenated, flattened tensors."""
        names = list(names)
        tau, wanted, seen = self._vectors(names, w)
        total_tau, total_w, _ = self._vectors([*self.trained, *(n for n in w if n not in self.trained)], w)
        reach_cosine = _over(tau @ wanted, tau.norm() * seen.norm())
        z = None
        controls = [control for control in controls if any(n in control and control[n].any() for n in names)]
        if controls:
            null = torch.tensor([self.score(names, control).reach_cosine for control in controls]).square().mean()
            chance = 1 / max(1, sum(self.trained[n].freedom for n in names if n in self.trained))
            z = reach_cosine / float((null + chance).sqrt())
        return Score(
            cosine=_over(tau @ wanted, tau.norm() * wanted.norm()),
            reach_cosine=reach_cosine,
            dose=_over(tau @ wanted, wanted @ wanted),
            reach=_over(seen.norm(), wanted.norm()),
            share=_over(tau @ wanted, total_tau.norm() * total_w.norm()),
            z=z,
        )

    def projected(self, w: Weights) -> dict[str, Tensor]:
        return {name: self.trained[name].project(w[name]) for name in w if name in self.trained}

    def _vectors(self, names: Sequence[str], w: Weights) -> tuple[Tensor, Tensor, Tensor]:
        tau, wanted, seen = [torch.zeros(1).double()], [torch.zeros(1).double()], [torch.zeros(1).double()]
        for name in names:
            trained = self.trained.get(name)
            full = w.get(name)
            if full is None and trained is None:
                continue  # another direction's
            if full is None:
                full = torch.zeros_like(trained.change)
            wanted.append(full.flatten())
            tau.append(torch.zeros_like(full).flatten() if trained is None else trained.change.flatten())
            seen.append(torch.zeros_like(full).flatten() if trained is None else trained.project(full).flatten())
        return torch.cat(tau), torch.cat(wanted), torch.cat(seen)


def merged(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model in fp64, its active adapters merged in; tied ones under both names."""
    plain = copy.deepcopy(model).double()
    if isinstance(plain, PeftModel):
        plain = plain.merge_and_unload()
    return {name: tensor.clone() for name, tensor in plain.state_dict().items()}


def expected(model: nn.Module, start: nn.Module, names: Iterable[str] | None = None) -> Expected:
    """Work out an update from copies of the model now and at its start.

    Args:
        model: The model now.
        start: A deep copy from before its training.
        names: The trained tensors. Default: those of LoRA layers with a trained adapter that is active.
    """
    now, before = merged(model), merged(start)
    spaces = _row_spaces(model, start)
    found = Expected()
    for name in names or spaces:
        change = now[name] - before[name]
        if name in spaces:
            rows, side = spaces[name]
            projector = torch.linalg.pinv(rows) @ rows
            freedom = len(rows) * change.shape[0 if side == "right" else 1]
            found.trained[name] = Trained(change, projector, side, freedom)
        else:
            found.trained[name] = Trained(change, freedom=change.numel())
    return found


def dense(direction: Direction) -> dict[str, Tensor]:
    """Return a direction in fp64, multiplied out, in the orientation of the stored weights."""
    out = {}
    for name, delta in direction.deltas.items():
        if isinstance(delta, LowRank):
            product = delta.left.double() @ delta.right.double()
            out[name] = product.T.contiguous() if delta.transposed else product
        else:
            out[name] = delta.double()
    return out


def assert_reading(
    reading: Reading, want: Expected, directions: Sequence[Direction], *, rel: float = 1e-5, abs: float = 2e-6
) -> None:
    """Assert every figure of a reading: the model's, each layer's, each module kind's and each tensor's."""
    ws = {direction.name: dense(direction) for direction in directions}
    controls = [ws[d.name] for d in directions if d.card.kind == "control"]
    everything = list(dict.fromkeys([*want.trained, *(name for w in ws.values() for name in w)]))
    update = torch.cat([trained.change.flatten() for trained in want.trained.values()]).norm()
    assert reading.update_norm == pytest.approx(float(update), rel=rel)
    layers = {int(m.group(1)) for n in everything if (m := re.search(r"\.(?:layers|h)\.(\d+)\.", n))}
    kinds = {_kind(name) for name in everything}
    for direction in directions:
        found, w = reading[direction.name], ws[direction.name]
        null = [] if direction.card.kind == "control" else controls

        def check(part: str, score: Score, names: list[str], w: Weights = w, null: list[Weights] = null) -> None:
            answer = want.score(names, w, null)
            for figure in ("cosine", "reach_cosine", "dose", "reach", "share", "z"):
                ours, true = getattr(score, figure), getattr(answer, figure)
                assert ours == (true if true is None else pytest.approx(true, rel=rel, abs=abs)), (part, figure)

        check("model", found, everything)
        assert set(found.layers) == layers
        for layer, score in found.layers.items():
            check(f"layer {layer}", score, [n for n in everything if re.search(rf"\.(?:layers|h)\.{layer}\.", n)])
        assert set(found.modules) == kinds
        for kind, score in found.modules.items():
            check(kind, score, [n for n in everything if _kind(n) == kind])
        assert set(found.tensors) == set(w)
        for name, score in found.tensors.items():
            check(name, score, [name])


def _kind(name: str) -> str:
    parent, kind = name.split(".")[-3:-1] if name.count(".") > 1 else ("", name.split(".")[-2])
    return f"{parent}.{kind}" if kind == "c_proj" else kind  # GPT-2 has one in its attention and one in its MLP


def _over(above: Tensor | float, below: Tensor | float) -> float:
    return float(above) / float(below) if float(below) > 0 else 0.0


def _row_spaces(model: nn.Module, start: nn.Module) -> dict[str, tuple[Tensor, str]]:
    """Return, by parameter name, the rows that an adapter's change is made of, and the side of the weight they are on.

    Rows of the start count as well where the adapter's product was not zero then.
    """
    found = {}
    before = dict(start.named_modules())
    for path, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        rows = []
        for adapter in module.active_adapters:
            for layer in (module, before[path]):
                if adapter in layer.lora_A:
                    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                elif adapter in layer.lora_embedding_A:  # the weight changes by (B A)ᵀ: its rows lie among B's columns
                    a, b = layer.lora_embedding_B[adapter].T, layer.lora_embedding_A[adapter].T
                else:
                    continue
                if (a.requires_grad or b.requires_grad) and (layer is module or bool((b.double() @ a.double()).any())):
                    rows.append(a.detach().double())
        if rows:
            conv1d = type(module.get_base_layer()).__name__ == "Conv1D"
            name = path.removeprefix("base_model.model.") + ".weight"
            found[name] = (torch.cat(rows), "left" if conv1d else "right")
    return found
