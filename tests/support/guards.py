"""A guard on a tiny model in training, and what it should take back, computed in fp64 from the definitions alone."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests import oracle as slow
from weightwatch.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.vectors import Direction
from weightwatch.vectors.arithmetic import add

Weights = Mapping[str, Tensor]


@dataclass
class Run:
    """A guarded training."""

    model: nn.Module
    start: nn.Module
    guard: Guard
    optimizer: Any
    seed: int = 0

    def backward(self) -> None:
        """Compute the gradients of a batch."""
        generator = torch.Generator().manual_seed(self.seed)
        self.seed += 1
        ids = torch.randint(48, (4, 12), generator=generator)
        self.optimizer.zero_grad()
        self.model(input_ids=ids, labels=ids).loss.backward()

    def step(self) -> tuple[Weights, Weights]:
        """Train for a step. Return the merged weights before and after the guard."""
        self.backward()
        self.guard.before_step()
        self.optimizer.step()
        before = self.weights()
        self.guard.after_step()
        return before, self.weights()

    def weights(self) -> Weights:
        """Return the merged weights in fp64, tied ones once."""
        return merged(self.model)

    def tau(self, weights: Weights) -> Weights:
        """Return how far some merged weights are from those at the start."""
        return {name: weights[name] - self.begun[name] for name in weights}

    @cached_property
    def begun(self) -> Weights:
        """The merged weights at the start."""
        return merged(self.start)


def begun(
    model: nn.Module,
    directions: Sequence[Direction],
    *,
    optimizer: Any = None,
    starts: bool = False,
    **settings: Any,
) -> Run:
    """Begin to guard a model.

    Args:
        model: The model.
        directions: The guarded directions.
        optimizer: Makes the optimizer of the trained parameters. Default: Adam.
        starts: Whether the monitor takes the adapters as they are for the start.
        **settings: Settings of the guard. Default: mode ``update``.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    made = (optimizer or (lambda several: torch.optim.Adam(several, lr=1e-2)))(trained)
    monitor = Monitor(directions, reference={n: t.clone() for n, t in model.state_dict().items() if "lora_" not in n})
    if any("lora_" in name for name, _ in model.named_parameters()):
        monitor = Monitor(directions)
    if starts:
        monitor.start(model)
    guard = Guard(monitor, {"witness": "none", "mode": "update", **settings})
    start = copy.deepcopy(model)
    guard.begin(model, made)
    return Run(model, start, guard, made)


def carried(optimizer: Any, parameter: nn.Parameter) -> Tensor:
    """Return the first moment of a parameter, of Adam in units of the steps that it leads to."""
    state = optimizer.state[parameter]
    if "exp_avg_sq" not in state:
        return state["momentum_buffer"].double()
    (group,) = (group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    divisor = state["exp_avg_sq"].sqrt() + group["eps"] * (1 - group["betas"][1] ** float(state["step"])) ** 0.5
    return state["exp_avg"].double() / 2.0 ** (torch.frexp(divisor).exponent - 1).double()


def merged(model: nn.Module) -> Weights:
    """Return the merged weights of a model in fp64, tied ones under their first names."""
    adapted = any("lora_" in name for name, _ in model.named_parameters())
    own = {slow.canonical(name) for name, _ in model.named_parameters()}
    return {name: tensor for name, tensor in slow.merged(model).items() if adapted or name in own}


def correlated(one: Direction, other: Direction, *, name: str = "second") -> Direction:
    """Return a direction with a cosine of about 0.8 to another one."""
    return add(one, other, weights=[0.8, 0.6], name=name)


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether tensors are equal bit for bit, NaN included."""
    return one.keys() == other.keys() and all(
        torch.equal(one[n].reshape(-1).view(torch.uint8), other[n].reshape(-1).view(torch.uint8)) for n in one
    )


def tried(inner: np.ndarray, gram: np.ndarray, high: np.ndarray, low: np.ndarray | None = None) -> np.ndarray:
    """Return the coefficients of the smallest change that meets all bounds, by trying which of them are reached."""
    count = len(inner)
    if low is not None:  # a lower bound is an upper one of the opposite direction
        inner, high = np.concatenate([inner, -inner]), np.concatenate([high, -low])
        gram = np.block([[gram, -gram], [-gram, gram]])
    best, size = None, np.inf
    for active in [list(some) for n in range(len(inner) + 1) for some in combinations(range(len(inner)), n)]:
        c = np.zeros(len(inner))
        try:
            c[active] = np.linalg.solve(gram[np.ix_(active, active)], (inner - high)[active])
        except np.linalg.LinAlgError:
            continue
        room = 1e-9 * max(1.0, np.abs(inner).max())
        if (c >= -1e-12).all() and (inner - gram @ c <= high + room).all() and c @ gram @ c < size:
            best, size = c, c @ gram @ c
    assert best is not None
    return best[:count] if low is None else best[:count] - best[count:]


def projected(model: nn.Module, spaces: Mapping[str, slow.Trained], w: Weights) -> dict[str, Tensor]:
    """Return P(w) of each trained tensor: what the model can express of a direction while its other factors stay."""
    trained = {slow.canonical(name) for name, p in model.named_parameters() if p.requires_grad}
    trained |= {name for name in w if any(slow.canonical(n).startswith(name.rpartition(".")[0]) for n in trained)}
    return {name: spaces[name].project(w[name]) if name in spaces else w[name] for name in w if name in trained}


def wanted(
    run: Run, tau: Weights, directions: Sequence[Direction], *, budget: float = 0.0, whole: bool = False, **bounds: Any
) -> dict[str, Tensor]:
    """Return Σ c_k P(w_k): what is to be taken back of an update.

    Args:
        run: The training.
        tau: The update.
        directions: The guarded directions.
        budget: The dose that is allowed.
        whole: Whether the budget holds for the model as a whole.
        **bounds: ``both_ways``.
    """
    ws = [slow.dense(direction) for direction in directions]
    spaces = slow.spaces(run.model)
    ps = [projected(run.model, spaces, w) for w in ws]
    names = sorted({name for p in ps for name in p})
    groups = [names] if whole else [[name] for name in names]
    found = {name: torch.zeros_like(tau[name]) for name in tau}
    for group in groups:
        have = [k for k, p in enumerate(ps) if any(name in p for name in group)]
        inner = np.array([sum(float((tau[n] * ws[k][n]).sum()) for n in group if n in ps[k]) for k in have])
        gram = np.array(
            [
                [sum(float((ps[k][n] * ps[j][n]).sum()) for n in group if n in ps[k] and n in ps[j]) for j in have]
                for k in have
            ]
        )
        high = np.array([budget * sum(float(ws[k][n].square().sum()) for n in group if n in ps[k]) for k in have])
        c = tried(inner, gram, high, -high if bounds.get("both_ways") else None)
        for k, much in zip(have, c, strict=True):
            for name in group:
                if name in ps[k]:
                    found[name] = found[name] + much * ps[k][name]
    return found


def plain_name(key: str) -> str:
    """Return the name in the plain model of the weight that a parameter changes."""
    before, adapted, _ = key.partition(".lora_")
    return slow.canonical(f"{before}.base_layer.weight" if adapted else key)


def first_order(
    model: nn.Module, name: str, w: Tensor, of: Callable[[nn.Parameter], Tensor | None]
) -> dict[str, float]:
    """Return ⟨dτ,w⟩, relative to ‖dτ‖ ‖w‖, if a parameter of a weight moves by some tensor and the others stay."""
    if name in (found := dict(model.named_parameters())):
        change = of(found[name])
        return {} if change is None else {"": _cosine(change.double(), w)}
    halves = {key: p for key, p in found.items() if ".lora_" in key and plain_name(key) == name}
    if not halves:
        return {}
    (a,), (b,) = ([p for key, p in halves.items() if f"_{half}." in key] for half in "AB")
    layer = model.get_submodule(next(iter(halves)).partition(".lora_")[0]).get_base_layer()
    turned = isinstance(layer, nn.Embedding | Conv1D)
    da, db = of(a), of(b)
    moves = {
        "A": None if da is None else b.detach().double() @ da.double(),
        "B": None if db is None else db.double() @ a.detach().double(),
    }
    return {half: _cosine(m.T if turned else m, w) for half, m in moves.items() if m is not None}


def _cosine(change: Tensor, w: Tensor) -> float:
    size = float(change.norm() * w.norm())
    return float((change * w).sum()) / size if size else 0.0


def adam(trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(trained, lr=1e-2)


def momentum(trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained, lr=1.0, momentum=0.9)
