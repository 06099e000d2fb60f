"""Training with k·w added to what the model computes, and to nothing that is saved.

The forward pass of each layer is that of ``W + k w``, so the data need not move the weights along w. The weights stay
as they are: θ₀, checkpoints, resumes and readings are those of an ordinary run, and taking w off again is to stop.
Sources: preventative steering of activations, Chen et al., arXiv 2507.21509.
"""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, compiler, nn
from torch.utils.hooks import RemovableHandle

from weightwatch.guard.shift import Found, Norm, Products, Shift, is_norm
from weightwatch.update.peft.lora import REF
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import canonical

_logger = logging.getLogger("weightwatch")


class Addition:
    """k·w, added to the forward pass of a model's layers while they are in training mode.

    It goes when it is released or no longer held: a model that outlives it is as it was.

    Args:
        model: The model, plain or with adapters.
        directions: The directions. What they state for an embedding counts for its tied head, too.
        k: The coefficient.
        chosen: Whether a weight is to be guarded, by its name.

    Raises:
        WeightWatchError: A direction has a weight whose layer can't be shifted from outside.
    """

    def __init__(
        self, model: nn.Module, directions: Sequence[Direction], k: float, chosen: Callable[[str], bool]
    ) -> None:
        self._switch = Switch(_adapter(model))
        self._shifts = [
            Norm(found, k) if is_norm(found.layer) else Products(found, k)
            for found in _found(model, directions, chosen)
        ]
        self._handles: list[RemovableHandle] = []
        self._told = False
        weakref.finalize(self, _remove, self._handles).atexit = False

    @property
    def on(self) -> bool:
        """Whether it is added to the forward passes that come."""
        return self._switch.on

    @on.setter
    def on(self, value: bool) -> None:
        self._switch.on = value

    def hook(self) -> None:
        """Add it from now on."""
        if not self._handles:
            for shift in self._shifts:
                hook = partial(_added, shift=shift, switch=self._switch)
                self._handles.append(shift.layer.register_forward_hook(hook, with_kwargs=True))
            compiler.reset()  # a model that is compiled already would run without what was just added

    def require_used(self) -> None:
        """Warn of layers to which the first step has added nothing.

        Raises:
            WeightWatchError: It was added to nothing since the last call.
        """
        used, unused = ([name for s in self._shifts if s.used == was for name in s.names] for was in (True, False))
        for shift in self._shifts:
            shift.used = False
        if not used:
            raise WeightWatchError(
                "No layer to which `mode: preventative` adds was run in training mode since the step before. Train "
                "with model.train(), in a trainer whose `training_step` runs the model; or use `mode: update`."
            )
        if unused and not self._told:
            _logger.warning(
                "weightwatch: the guard added nothing to %s in its first step, since what was run are other layers: a "
                "loss may read the head itself, or experts may have no tokens.",
                " and ".join([unused[0], f"{len(unused) - 1} others"][: len(unused)]),
            )
        self._told = True

    def release(self) -> None:
        """Take it off."""
        self._switch.on = False
        _remove(self._handles)


@dataclass
class Switch:
    """Whether k·w is added.

    Attributes:
        adapter: One of the model's adapter modules; None without adapters.
        on: Whether it is added to what is trained.
    """

    adapter: Any
    on: bool = True

    def __reduce__(self) -> tuple[type["Switch"], tuple[None, bool]]:
        """Return one that is off: to copies of the model, which nobody guards, nothing is added."""
        return Switch, (None, False)

    @property
    def adds(self) -> bool:
        """Whether it is added now: not where DPO and others compute with θ₀, the model without its adapter."""
        if self.adapter is None or not self.on:
            return self.on
        return not self.adapter.disable_adapters and REF not in self.adapter.active_adapters


def _added(
    layer: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Tensor, shift: Shift, switch: Switch
) -> Tensor | None:
    if not layer.training or not switch.adds:
        return None
    shift.used = True
    return output + shift.of(inputs[0] if inputs else next(iter(named.values())), output)


def _found(model: nn.Module, directions: Sequence[Direction], chosen: Callable[[str], bool]) -> list[Found]:
    """Return the layers that have weights of the directions, tied heads included."""
    owners, modules = _owners(model), dict(model.named_modules())
    found: dict[int, Found] = {}
    for direction in directions:
        refused: dict[str, str] = {}
        for name, w in direction.deltas.items():
            if not chosen(name):
                continue
            path, key, layer = owners.get(name, ("", "", None))
            reason = _reason(layer, path, key, direction.shape(name), modules)
            if layer is None or reason is not None:
                refused[name] = reason or "no weight of this model"
                continue
            several = [layer]
            if not path.endswith(".base_layer"):  # an adapter changes this layer alone
                several += [
                    other
                    for theirs, (_, its, other) in owners.items()  # a tied head has the same weight
                    if other is not layer and other._parameters[its] is layer._parameters[key]
                    if theirs not in direction.deltas
                ]
            for each in several:
                of_layer = found.setdefault(id(each), Found(each, [], {}))
                of_layer.names.append(name)
                of_layer.changes.setdefault(key, []).append(w)
        if refused:
            name, others = next(iter(refused)), ", ".join([*refused][1:4])
            more = f" The same goes for {len(refused) - 1} others: {others}, …." if others else ""
            raise WeightWatchError(
                f"Direction {direction.name!r} has {name}, which is {refused[name]}; `mode: preventative` can't add to "
                f"it. Leave its layer out with `layers:`, guard a direction without it, or use `mode: update`.{more}"
            )
    return list(found.values())


def _adapter(model: nn.Module) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)


def _owners(model: nn.Module) -> dict[str, tuple[str, str, nn.Module]]:
    """Return path, key and layer of each parameter by its name in the plain model; under PEFT, of the base layers."""
    found: dict[str, tuple[str, str, nn.Module]] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():  # PEFT's layers show the weight of the layer inside
            name = canonical(f"{path}.{key}" if path else key)
            if parameter is not None and (name not in found or ".modules_to_save." in path):
                found[name] = path, key, module
    return found


def _reason(
    layer: nn.Module | None, path: str, key: str, shape: tuple[int, ...], modules: Mapping[str, nn.Module]
) -> str | None:
    """Return what rules out to add to a layer's parameter; None if nothing does."""
    if layer is None:
        return "no weight of this model"
    kind = type(layer).__name__
    if isinstance(layer, nn.MultiheadAttention) or isinstance(
        modules.get(path.rpartition(".")[0]), nn.MultiheadAttention
    ):
        return "read by MultiheadAttention itself, which does not run it as a layer"
    if isinstance(layer, nn.Linear):
        ours: tuple[int, ...] = layer.out_features, layer.in_features
    elif isinstance(layer, nn.Embedding):
        ours = layer.num_embeddings, layer.embedding_dim
    elif kind == "Conv1D":
        ours = shape
    elif is_norm(layer) and len(shape) == 1:
        return None
    else:
        return f"the {key} of {kind}, which is no linear layer, embedding or norm"
    wanted = ours if key == "weight" else ours[:1]
    return f"of another shape here, {wanted} and not {shape}" if shape != wanted else None


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
