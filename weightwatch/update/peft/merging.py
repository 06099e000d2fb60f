"""What an adapter that has no factors changes: a copy of its layer is merged by PEFT, and compared with the layer.

Whether PEFT's merge tells the truth about a kind of layer is tried, not believed: a copy with moved adapters has to
give the same outputs before and after it is merged. Input-dependent adapters are found out by that, or can't be merged.
"""

import copy
import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

_MOVE = 0.1  # by which adapters are moved for the trial, in standard deviations of the parameter
_APART = 1e-4  # what merging may differ by from the layer's outputs, as a share of what the adapter adds to them
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SIMPLE = (bool, int, str)
_PASSING = {"training", "_disable_adapters", "_active_adapter", "_tied_adapter"}
_PASSING |= {
    "in_features",
    "out_features",
    "num_embeddings",
    "embedding_dim",
    "nf",
    "nx",
    "in_channels",
    "out_channels",
}

_verdicts: dict[Hashable, tuple[str, ...] | str] = {}


class NotMergeableError(Exception):
    """The change of a layer's weights can't be told by merging; the message is the reason."""


def quantised(module: Any) -> bool:
    """Whether the weights of the layer beneath an adapter are stored in another form than that they compute in."""
    stored = list(module.get_base_layer().parameters())
    return not stored or any(type(p) is not nn.Parameter or p.dtype not in _PLAIN for p in stored)


def changed(module: Any, adapters: Sequence[str], moved: Collection[str]) -> tuple[str, ...]:
    """Return the names of the parameters of the layer beneath that its adapters can change.

    The first layer of each kind is tried out; the verdict is kept for those like it.

    Args:
        module: PEFT's layer.
        adapters: The adapters that are active in it.
        moved: The adapters' parameters that are trained, by their names in the layer.

    Raises:
        NotMergeableError: PEFT can't merge such a layer, or the merged layer does something else.
    """
    kind = _kind(module, adapters, moved)
    if kind not in _verdicts:
        try:
            with torch.random.fork_rng(_devices(module)):
                _verdicts[kind] = _trial(module, adapters, moved)
        except NotMergeableError as fault:
            _verdicts[kind] = str(fault)
    verdict = _verdicts[kind]
    if isinstance(verdict, str):
        raise NotMergeableError(verdict)
    return verdict


def difference(
    module: Any, name: str, after: Sequence[str], before: Sequence[str], start: Mapping[str, Tensor]
) -> Tensor:
    """Return how adapters have changed a parameter of the layer beneath, in fp64 (fp32 on Apple's MPS).

    Args:
        module: PEFT's layer.
        name: The parameter's name in the layer beneath.
        after: The adapters that count now.
        before: Those that counted at the start.
        start: Values of the adapters' parameters at the start, by their names in the layer.
    """
    try:
        first = _copy(module)
        parameters = dict(first.named_parameters())
        for place, value in start.items():
            parameters[place].data = value.to(parameters[place])
        was = _merge(first, before)[name].clone()
        del first, parameters
        return _merge(_copy(module), after)[name] - was
    except NotMergeableError:
        if all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise
        return torch.full_like(attrgetter(name)(module.get_base_layer()), torch.nan)  # as any tensor that holds NaN


def _trial(module: Any, adapters: Sequence[str], moved: Collection[str]) -> tuple[str, ...]:
    """Merge a copy whose adapters were moved, and return the parameters that this changed."""
    trial = _copy(module)
    for name, parameter in trial.named_parameters():
        if name in moved and parameter.is_floating_point():
            parameter.nan_to_num_()  # the verdict is on the kind, not on a training that has diverged
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            scale = float(parameter.std(correction=0)) or 1.0
            parameter.add_(_MOVE * scale * noise.to(parameter))
    inputs = _inputs(trial.get_base_layer())
    before = {name: tensor.clone() for name, tensor in _merge(trial, []).items()}
    plain = _outputs(trial.get_base_layer(), inputs)
    wanted = _outputs(trial, inputs)
    after = _merge(trial, adapters)
    apart = (_outputs(trial, inputs) - wanted).norm()
    if not apart <= _APART * (wanted - plain).norm():
        raise NotMergeableError("what PEFT merges into the weights is not what the adapter does")
    if any(after[name].shape != before[name].shape for name in after):
        raise NotMergeableError("merging gives the layer other parameters than it had")
    return tuple(name for name in after if not torch.equal(after[name], before[name]))


def _copy(module: Any) -> Any:
    """Return a copy of a layer for reckoning with: in fp64, in eval mode, without gradients."""
    if any(parameter.is_meta for parameter in module.parameters()):
        raise NotMergeableError("a part of it is offloaded")
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise NotMergeableError(f"it can't be copied ({error})") from error
    on_mps = any(parameter.device.type == "mps" for parameter in module.parameters())
    dtype = torch.float32 if on_mps else torch.float64
    for name, value in vars(twin).items():
        if isinstance(value, torch.dtype) and value.is_floating_point:
            setattr(twin, name, dtype)  # AdaMSS computes in the precision that it was made with
    return twin.to(dtype).eval().requires_grad_(False)


def _merge(module: Any, adapters: Sequence[str]) -> dict[str, Tensor]:
    """Merge adapters into a copy, and return the parameters of the layer beneath."""
    names = _beneath(module)
    if adapters:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module.merge(adapter_names=list(adapters))
        except Exception as error:
            reason = str(error).rstrip(".") or f"PEFT raises {type(error).__name__}"
            raise NotMergeableError(f"PEFT can't merge it ({reason})") from error
    base = module.get_base_layer()
    return {name: attrgetter(name)(base).detach() for name in names}


def _beneath(module: Any) -> list[str]:
    """Return the names of the parameters beneath a layer, without those of adapters inside it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = module.get_base_layer()
    inside = [f"{path}." for path, part in base.named_modules() if isinstance(part, BaseTunerLayer)]
    names = [name for name, _ in base.named_parameters()]
    return [
        name for name in names if not any(name.startswith(p) and not name.startswith(f"{p}base_layer.") for p in inside)
    ]


def _outputs(module: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = module.forward(*inputs)
    except Exception as error:
        raise NotMergeableError(f"its outputs can't be compared with those of a merged copy ({error})") from error
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output


def _inputs(base: Any) -> tuple[Tensor, ...]:
    """Return random inputs for a layer."""
    generator = torch.Generator().manual_seed(0)
    like = next(base.parameters())

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like)

    if isinstance(base, nn.MultiheadAttention):
        return (noise(3, 3, base.embed_dim),) * 3
    weight = base.weight
    if isinstance(base, nn.Embedding):
        return (torch.randint(len(weight), (4, 8), generator=generator).to(weight.device),)
    if isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        sizes = [d * (k - 1) + 3 for k, d in zip(base.kernel_size, base.dilation, strict=True)]
        return (noise(2, base.in_channels, *sizes),)
    if weight.ndim == 1:
        return (noise(8, *weight.shape),)
    if weight.ndim == 2:
        return (noise(8, weight.shape[1 if isinstance(base, nn.Linear) else 0]),)
    raise NotMergeableError(f"{type(base).__name__} is no layer whose outputs are known how to compare")


def _kind(module: Any, adapters: Sequence[str], moved: Collection[str]) -> Hashable:
    """Return all by which the merging of two layers could differ, but for their sizes."""
    base = module.get_base_layer()
    by_adapter = [
        (key, place, value if isinstance(value, _SIMPLE) else type(value))
        for key, values in vars(module).items()
        if isinstance(values, dict) and not key.startswith("_")
        for place, adapter in enumerate(adapters)
        if (value := values.get(adapter)) is not None
    ]
    weights = tuple((name, p.ndim) for name, p in base.named_parameters())
    about = _settings(module), _settings(base), (*by_adapter,), weights
    return type(module), type(base), about, frozenset(moved), tuple(adapters)


def _settings(module: Any) -> Hashable:
    return tuple((k, v) for k, v in vars(module).items() if isinstance(v, (*_SIMPLE, tuple)) and k not in _PASSING)


def _devices(module: Any) -> list[torch.device]:
    return [d for d in {p.device for p in module.parameters()} if d.type == "cuda"]
