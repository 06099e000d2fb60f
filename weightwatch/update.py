"""The update τ = θ_t − θ₀ of a model in training: which tensors are trained, and how each has changed.

Adapters are read as factors and never multiplied out; fully trained tensors are subtracted block by block.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from weightwatch.peft_layers import (
    base_changing_start,
    lora_change,
    lora_layers,
    own_parameters,
    saved_copies,
    weight_beneath,
)
from weightwatch.reference import Reference, StateDict
from weightwatch.vectors.delta import BLOCK, LowRank
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.names import canonical


@dataclass(frozen=True)
class Difference:
    """The change of a fully trained tensor: its value now, and a way to read θ₀.

    Attributes:
        current: The parameter.
        start: Reads rows of θ₀'s tensor.
    """

    current: Tensor
    start: Callable[[int, int], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.current.shape)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield ranges of rows and the change in them, in fp32, about 2 MB at a time.

        θ₀ is rounded to the parameter's precision first, as it was when the model was loaded.
        """
        rows = self.shape[0] if self.shape else 1
        step = max(1, BLOCK * rows // max(1, self.current.numel()))
        now = self.current.detach().reshape(rows, *self.shape[1:])
        for first in range(0, rows, step):
            last = min(rows, first + step)
            before = self.start(first, last).to(now.device, now.dtype)
            yield slice(first, last), now[first:last].float() - before.reshape(now[first:last].shape).float()


Change: TypeAlias = LowRank | Difference


class Update(Mapping[str, Change]):
    """How each trained tensor of a model differs from θ₀, by parameter name.

    What is trained is what requires a gradient. In a model in which nothing does (loaded for inference), it is the
    active adapters, or all tensors where there are none.

    Args:
        model: Any ``nn.Module``; PEFT models and wrapped models included.
        reference: θ₀ where the model itself doesn't hold it: of fully trained tensors, and of adapters that did not
            start at zero.

    Raises:
        WeightWatchError: The model is trained in a way whose update can't be read exactly, or θ₀ of a tensor is
            missing or has another shape.
    """

    def __init__(self, model: nn.Module, reference: Reference | None = None) -> None:
        reference = reference or Reference()
        _require_whole(model)
        names = {id(p): canonical(n) for n, p in model.named_parameters()}
        every = not any(p.requires_grad for p in model.parameters())
        taken: set[int] = set()
        self._changes: dict[str, Change] = {}
        for path, module in lora_layers(model):
            name = f"{canonical(path + '.')}weight"
            change = lora_change(path, module, every)
            taken.update(own_parameters(module))
            if change is not None:
                self._changes[name] = _since(change, reference.factors.get(name))
        for copy, original in saved_copies(model):
            taken.update((id(copy), id(original)))
            if every or copy.requires_grad:
                name = names[id(copy)]
                known = reference.weights is not None and name in reference.weights
                start = _start(name, copy, reference) if known else _slicer(original)
                self._changes[name] = Difference(copy, start)
        adapted = bool(self._changes)
        for parameter in model.parameters():
            if id(parameter) not in taken and (parameter.requires_grad or (every and not adapted)):
                name = names[id(parameter)]
                if name in self._changes:
                    raise WeightWatchError(
                        f"{name} is trained itself and by an adapter at once, which is not supported. Freeze one."
                    )
                self._changes[name] = Difference(parameter, _start(name, parameter, reference))
        if not self._changes:
            raise WeightWatchError("The model has no trained parameters: nothing requires a gradient.")

    def __getitem__(self, name: str) -> Change:
        return self._changes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)


def full_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the fully trained parameters whose θ₀ the model does not hold itself, by name."""
    held = {part for _, module in lora_layers(model) for part in own_parameters(module)}
    held.update(id(p) for pair in saved_copies(model) for p in pair)
    return {canonical(n): p for n, p in model.named_parameters() if p.requires_grad and id(p) not in held}


def base_name(model: nn.Module) -> str:
    """Return the path or Hub id that a model's config says it was loaded from; empty where it says nothing."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def tied_names(model: nn.Module) -> set[str]:
    """Return the further names of parameters that several names share: a tied head, under the head's name."""
    every = {canonical(n) for n, _ in model.named_parameters(remove_duplicate=False)}
    return every - {canonical(n) for n, _ in model.named_parameters()}


def base_weight(model: nn.Module, reference: Reference | None = None) -> Callable[[str], Tensor | None]:
    """Return a reader of the model's θ₀ by parameter name, for comparing fingerprints.

    The reader gives None where the base is quantised, and raises KeyError where the model has no such tensor.
    """
    reference = reference or Reference()
    base_changed = base_changing_start(model) is not None
    weights: dict[str, Tensor | None] = {canonical(n): p for n, p in model.named_parameters()}
    weights.update({f"{canonical(path + '.')}weight": weight_beneath(module) for path, module in lora_layers(model)})
    weights.update({canonical(n): p for n, p in model.named_parameters() if "original_module." in n})

    def read(name: str) -> Tensor | None:
        if reference.weights is not None and name in reference.weights:
            return reference.weights.rows(name, 0, (*reference.weights.shape(name), 1)[0])
        weight = weights[name]
        if weight is None or not weight.is_floating_point():
            return None
        if base_changed and name in reference.factors:
            return weight.detach().float() + reference.factors[name].dense().to(weight.device)
        return weight.detach()

    return read


def _since(now: LowRank, start: LowRank | None) -> LowRank:
    """Subtract the start of an adapter: L R − L₀ R₀ = [L − L₀, L₀] [R; R − R₀], which keeps small moves exact."""
    if start is None:
        return now
    left, right = start.left.to(now.left), start.right.to(now.right)
    if left.shape != now.left.shape or right.shape != now.right.shape:
        factors = torch.cat([now.left, -left], 1), torch.cat([now.right, right], 0)
    else:
        factors = torch.cat([now.left - left, left], 1), torch.cat([now.right, now.right - right], 0)
    return LowRank(*factors, now.transposed, now.limited)


def _require_whole(model: nn.Module) -> None:
    """Refuse a model whose parameters are spread over processes: each would measure only its part."""
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_is_flat_param") or hasattr(parameter, "device_mesh"):
            raise WeightWatchError(
                f"{canonical(name)} is sharded over processes (FSDP, ZeRO-3, tensor parallel), which is not supported "
                "yet. Train with plain data parallelism, or on one device."
            )


def _slicer(tensor: Tensor) -> Callable[[int, int], Tensor]:
    return lambda first, last: tensor.detach()[first:last]


def _start(name: str, parameter: Tensor, reference: Reference) -> Callable[[int, int], Tensor]:
    weights = reference.weights
    if weights is None or name not in weights:
        raise WeightWatchError(
            f"θ₀ of {name} is unknown: pass reference=, a state dict or the path of the base checkpoint."
        )
    if weights.shape(name) != tuple(parameter.shape):
        raise WeightWatchError(
            f"θ₀ has shape {weights.shape(name)} for {name} where the model has {tuple(parameter.shape)}. "
            "Pass the checkpoint that training started from."
        )
    if isinstance(weights, StateDict) and weights.rows(name, 0, 1).data_ptr() == parameter.data_ptr():
        raise WeightWatchError(
            f"The reference of {name} is the model's own memory, so it moves along in training. Take a copy before "
            "training: {name: tensor.clone() for name, tensor in model.state_dict().items()}."
        )
    return lambda first, last: weights.rows(name, first, last)
