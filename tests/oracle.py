"""The independent reference for readings: slow, in fp64, with every change of a weight multiplied out.

It is written from the definitions in the documentation alone. A change is the difference between the weights of a
merged copy of the model and those of a merged copy of its start. The projection is an explicit pseudo-inverse of the
adapter's A. A figure is a division of flattened vectors.
"""

import copy
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from peft import PeftModel
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from weightwatch.reading.reading import Reading, Score
from weightwatch.update.change import Change, Difference, Merged, Rescaled
from weightwatch.vectors import Direction, LowRank
from weightwatch.vectors.weights.names import canonical

Weights = Mapping[str, Tensor]


@dataclass
class Trained:
    """One trained tensor: its change, the projection P, and the number of elements that training can choose freely."""

    change: Tensor
    projector: Tensor | None = None
    side: str = "right"
    freedom: int = 0
    weight: Tensor | None = None
    """The base weight under DoRA, each row of which can be rescaled. ``projector`` is then the rows of A."""

    def project(self, w: Tensor) -> Tensor:
        if self.projector is None:
            return w
        if self.weight is not None:
            if self.side == "left":
                return Trained(self.change.T, self.projector, "right", 0, self.weight.T).project(w.T).T
            spans = [torch.cat([self.projector, row[None]]) for row in self.weight]
            return torch.stack(
                [x @ torch.linalg.pinv(span, rtol=1e-6) @ span for x, span in zip(w, spans, strict=True)]
            )
        return w @ self.projector if self.side == "right" else self.projector @ w


@dataclass
class Expected:
    """The tensors of an update, and the figures of a reading."""

    trained: dict[str, Trained] = field(default_factory=dict)

    def score(self, names: Iterable[str], w: Weights, controls: Sequence[Weights] = ()) -> Score:
        """Return the score of a part of the model: the figures of the concatenated, flattened tensors."""
        names = list(names)
        tau, wanted, seen = self._vectors(names, w)
        total_tau, total_w, _ = self._vectors([*self.trained, *(n for n in w if n not in self.trained)], w)
        reach_cosine = _over(tau @ wanted, tau.norm() * seen.norm())
        z = over = None
        controls = [control for control in controls if any(n in control and control[n].any() for n in names)]
        if controls:
            reached = torch.tensor([self.score(names, control).reach_cosine for control in controls])
            null, over = reached.square().mean(), reach_cosine - float(reached.max())
            chance = 1 / max(1, sum(self.trained[n].freedom for n in names if n in self.trained))
            z = reach_cosine / float((null + chance).sqrt())
        return Score(
            cosine=_over(tau @ wanted, tau.norm() * wanted.norm()),
            reach_cosine=reach_cosine,
            dose=_over(tau @ wanted, wanted @ wanted),
            reach=_over(seen.norm(), wanted.norm()),
            share=_over(tau @ wanted, total_tau.norm() * total_w.norm()),
            z=z,
            over_controls=over,
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
    plain = copy.deepcopy(model).double().eval()
    for module in plain.modules():
        if getattr(module, "dtype", None) == torch.float32:
            module.dtype = torch.float64
    seen = effective(plain)
    if isinstance(plain, PeftModel):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = plain.merge_and_unload()
    found = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    for name, tensor in seen.items():  # a merge is right only if the module's outputs are those of the merged weights
        assert (found[name] - tensor).norm() <= 1e-6 * tensor.norm(), name
    return found


@torch.no_grad()
def effective(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights and biases of the adapted linear layers, computed from their outputs."""
    found = {}
    for path, module in model.named_modules():
        nested = isinstance(getattr(module, "base_layer", None), BaseTunerLayer | NonDynamicallyQuantizableLinear)
        if (
            isinstance(module, BaseTunerLayer)
            and isinstance(module.get_base_layer(), nn.Linear | Conv1D)
            and not nested
        ):
            linear = isinstance(module.get_base_layer(), nn.Linear)
            weight = module.get_base_layer().weight
            width = weight.shape[1 if linear else 0]
            bias = module(torch.zeros(1, width, dtype=weight.dtype))[0]
            rows = module(torch.eye(width, dtype=weight.dtype)) - bias
            name = canonical(f"{path}.base_layer.")
            found[f"{name}weight"] = rows.T if linear else rows
            if module.get_base_layer().bias is not None:
                found[f"{name}bias"] = bias
    return found


def moved_names(model: nn.Module, now: Weights, before: Weights) -> list[str]:
    """Return the names of the tensors that differ; the first name of a tied one."""
    tied = {canonical(n) for n, _ in model.named_parameters(remove_duplicate=False)}
    tied -= {canonical(n) for n, _ in model.named_parameters()}
    return [name for name in now if name not in tied and not torch.equal(now[name], before[name])]


def expected(model: nn.Module, start: nn.Module, names: Iterable[str] | None = None) -> Expected:
    """Compute an update from the model now and a copy of its start.

    Args:
        model: The model now.
        start: A deep copy from before the training.
        names: Names of the trained tensors. Default: those that have changed.
    """
    now, before = merged(model), merged(start)
    spaces = _spaces(model, start)
    found = Expected()
    for name in moved_names(model, now, before) if names is None else names:
        change = now[name] - before[name]
        if name not in spaces:
            found.trained[name] = Trained(change, freedom=change.numel())
            continue
        rows, side, weight = spaces[name]
        other = change.shape[0 if side == "right" else 1]
        freedom = len(rows) * other + (0 if weight is None else other)
        projector = rows if weight is not None else torch.linalg.pinv(rows, rtol=1e-6) @ rows
        found.trained[name] = Trained(change, projector, side, freedom, weight)
    return found


def spaces(model: nn.Module) -> dict[str, Trained]:
    """Return what can move each weight under an adapter while the factor that limits its change stays as it is."""
    return {
        name: Trained(torch.zeros(0), torch.linalg.pinv(rows, rtol=1e-6) @ rows, side)
        for name, (rows, side, _) in _spaces(model, model).items()
    }


def multiplied_out(update: Mapping[str, Change]) -> dict[str, Tensor]:
    """Return every change of an update as a full tensor, in the orientation of the model's weight."""
    found = {}
    for name, change in update.items():
        match change:
            case LowRank() | Merged():
                found[name] = change.dense().float()
            case Rescaled():
                parts = change.rescaling()
                product = parts.rows[:, None] * parts.weight.double() + parts.left @ change.factors.right.double()
                found[name] = (product.T if change.transposed else product).float()
            case Difference():
                (piece,) = change.local.pieces
                found[name] = piece.values.float() - change.start(piece.box).float()
    return found


def dense(direction: Direction) -> dict[str, Tensor]:
    """Return a direction in fp64, multiplied out, in the orientation of the model's weights."""
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
    """Assert every figure of a reading: of the model, of each layer, of each kind of module and of each tensor."""
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
            for figure in ("cosine", "reach_cosine", "dose", "reach", "share", "z", "over_controls"):
                ours, true = getattr(score, figure), getattr(answer, figure)
                room = 20 * abs if figure == "z" else abs  # a quotient of two small figures
                assert ours == (true if true is None else pytest.approx(true, rel=rel, abs=room)), (part, figure)

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
    above, _, last = name.rpartition(".")
    parent, _, kind = (above if last in ("weight", "bias") else name).rpartition(".")
    return f"{parent.rpartition('.')[2]}.{kind}" if kind == "c_proj" else kind  # GPT-2 has one in each half of a layer


def _over(above: Tensor | float, below: Tensor | float) -> float:
    return float(above) / float(below) if float(below) > 0 else 0.0


Space = tuple[Tensor, str, Tensor | None]
"""Rows that span a change, the side of the weight that they are on, and the base weight under DoRA."""


def _spaces(model: nn.Module, start: nn.Module) -> dict[str, Space]:
    """Return, by parameter name, the rows that span an adapter's change.

    The rows at the start count as well if the adapter's product was not zero then.
    """
    found = {}
    before = dict(start.named_modules())
    for path, module in model.named_modules():
        if isinstance(getattr(module, "base_layer", None), NonDynamicallyQuantizableLinear):
            continue  # merged with the attention module that contains it
        space = None
        if isinstance(module, TrainableTokensLayer):
            chosen = sorted({i for adapter in module.active_adapters for i in module.token_indices[adapter]})
            space = torch.eye(len(module.get_base_layer().weight)).double()[chosen], "left", None
        elif (
            isinstance(module, LoraLayer)
            and not isinstance(module, AdaLoraLayer | MultiheadAttention)
            and getattr(module, "num_experts", 1) == 1
        ):
            space = _lora_space(module, before[path])
        if space is not None:
            found[f"{canonical(path + '.base_layer.')}{getattr(module, 'parameter_name', 'weight')}"] = space
    return found


def _lora_space(module: nn.Module, start: nn.Module) -> Space | None:
    base = module.get_base_layer()
    variants = [type(module.lora_variant.get(adapter)).__name__ for adapter in module.active_adapters]
    stretched = "DoraLinearVariant" in variants
    if not {*variants} <= {"NoneType", "DoraLinearVariant", "MiCALinearVariant", "MiCAEmbeddingVariant"}:
        return None
    rows, sides, counts = [], set(), False
    for adapter in module.active_adapters:
        for layer in (module, start):
            if adapter in layer.lora_A:
                a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            elif adapter in layer.lora_embedding_A:  # the weight changes by (B A)ᵀ: its rows lie among B's columns
                a, b = layer.lora_embedding_B[adapter].T, layer.lora_embedding_A[adapter].T
            else:
                continue
            trained = a.requires_grad or b.requires_grad
            counts |= trained
            product = b.double() @ a.double() if a.ndim == 2 else torch.zeros(())
            begun = trained and bool(product.any())
            if a.ndim > 2 or not (begun if layer is start else trained or stretched):
                continue
            by_columns = adapter in layer.lora_A and not b.requires_grad and a.requires_grad  # B is frozen
            sides.add("left" if isinstance(base, Conv1D) != by_columns else "right")
            rows.append((b.T if by_columns else a).detach().double())
    if not rows or not counts:
        return None
    (side,) = sides
    return torch.cat(rows), side, base.weight.detach().double() if stretched else None
