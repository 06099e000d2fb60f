"""Changes by adapters without factors: PEFT merges a copy of the adapter module, and the merged weights are compared.

PEFT's merge is verified once for each kind of adapter module: a copy with moved adapters must give the same outputs
before and after the merge. Adapters whose effect depends on the input fail this trial, or can't be merged at all.
"""

import copy
import warnings
from collections.abc import Collection, Hashable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

_MOVE = 0.1  # change of the adapters in the trial, in standard deviations of the parameter
_TOLERANCE = 1e-4  # allowed difference of the outputs after the merge, relative to the adapter's effect on them
_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_SIMPLE = (bool, int, str)
# Attributes that don't tell kinds of modules apart: passing states, and sizes.
_IGNORED = {"training", "_disable_adapters", "_active_adapter", "_tied_adapter"}
_IGNORED |= {
    "in_features",
    "out_features",
    "num_embeddings",
    "embedding_dim",
    "nf",
    "nx",
    "in_channels",
    "out_channels",
}

# By kind of adapter module: the parameters that merging changes, or the reason why it can't be merged.
_results: dict[Hashable, tuple[str, ...] | str] = {}


class NotMergeableError(Exception):
    """Merging does not give the change of an adapter module's weights. The message is the reason."""


def quantised(module: Any) -> bool:
    """Whether the base layer of an adapter module is quantised."""
    parameters = list(module.get_base_layer().parameters())
    return not parameters or any(type(p) is not nn.Parameter or p.dtype not in _PLAIN for p in parameters)


def changed(module: Any, adapters: Sequence[str], moved: Collection[str]) -> tuple[str, ...]:
    """Return the names of the base layer's parameters that the adapters can change.

    The first module of each kind is tried out. The result is kept for later modules of that kind.

    Args:
        module: The adapter module.
        adapters: Its active adapters.
        moved: Names in the module of the adapters' trained parameters.

    Raises:
        NotMergeableError: PEFT can't merge the module, or the merged module gives other outputs.
    """
    kind = _kind(module, adapters, moved)
    if kind not in _results:
        try:
            with torch.random.fork_rng(_devices(module)):
                _results[kind] = _trial(module, adapters, moved)
        except NotMergeableError as fault:
            _results[kind] = str(fault)
    result = _results[kind]
    if isinstance(result, str):
        raise NotMergeableError(result)
    return result


def difference(
    module: Any, name: str, after: Sequence[str], before: Sequence[str], start: Mapping[str, Tensor]
) -> Tensor:
    """Return the change of a parameter of the base layer by the adapters, in fp64 (fp32 on Apple's MPS).

    Args:
        module: The adapter module.
        name: Name of the parameter in the base layer.
        after: The adapters that count now.
        before: The adapters that counted at the start.
        start: Values of the adapters' parameters at the start, by name in the module.
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
        return torch.full_like(
            attrgetter(name)(module.get_base_layer()), torch.nan
        )  # left out, like any tensor with NaN


def _trial(module: Any, adapters: Sequence[str], moved: Collection[str]) -> tuple[str, ...]:
    """Move the adapters of a copy, merge it, and return the names of the parameters that the merge changed."""
    trial = _copy(module)
    for name, parameter in trial.named_parameters():
        if name in moved and parameter.is_floating_point():
            parameter.nan_to_num_()  # the trial is about the kind of module, not about a run that has diverged
            noise = _noise(parameter.shape, torch.Generator().manual_seed(len(name)))
            scale = float(parameter.std(correction=0)) or 1.0
            parameter.add_(_MOVE * scale * noise.to(parameter))
    inputs = _inputs(trial.get_base_layer())
    before = {name: tensor.clone() for name, tensor in _merge(trial, []).items()}
    plain = _outputs(trial.get_base_layer(), inputs)
    wanted = _outputs(trial, inputs)
    after = _merge(trial, adapters)
    error = (_outputs(trial, inputs) - wanted).norm()
    if not error <= _TOLERANCE * (wanted - plain).norm():
        raise NotMergeableError("what PEFT merges into the weights is not what the adapter does")
    if any(after[name].shape != before[name].shape for name in after):
        raise NotMergeableError("merging changes the shapes of the parameters")
    return tuple(name for name in after if not torch.equal(after[name], before[name]))


def _copy(module: Any) -> Any:
    """Return a copy of an adapter module to compute with: in fp64, in eval mode, without gradients."""
    if any(parameter.is_meta for parameter in module.parameters()):
        raise NotMergeableError("some of its parameters are offloaded")
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise NotMergeableError(f"it can't be copied ({error})") from error
    on_mps = any(parameter.device.type == "mps" for parameter in module.parameters())
    dtype = torch.float32 if on_mps else torch.float64
    for name, value in vars(twin).items():
        if isinstance(value, torch.dtype) and value.is_floating_point:
            setattr(twin, name, dtype)  # AdaMSS computes in the precision that it was created in
    return twin.to(dtype).eval().requires_grad_(False)


def _merge(module: Any, adapters: Sequence[str]) -> dict[str, Tensor]:
    """Merge adapters into a copy, and return the parameters of its base layer."""
    names = _base_parameters(module)
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


def _base_parameters(module: Any) -> list[str]:
    """Return the names of the base layer's parameters, without those of adapters inside it."""
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
    """Return random inputs for a base layer."""
    generator = torch.Generator("cpu").manual_seed(0)
    like = next(base.parameters())

    def noise(*shape: int) -> Tensor:
        return _noise(shape, generator).to(like)

    if isinstance(base, nn.MultiheadAttention):
        return (noise(3, 3, base.embed_dim),) * 3
    weight = base.weight
    if isinstance(base, nn.Embedding):
        tokens = torch.randint(len(weight), (4, 8), generator=generator, dtype=torch.long, device="cpu")
        return (tokens.to(weight.device),)
    if isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        sizes = [d * (k - 1) + 3 for k, d in zip(base.kernel_size, base.dilation, strict=True)]
        return (noise(2, base.in_channels, *sizes),)
    if weight.ndim == 1:
        return (noise(8, *weight.shape),)
    if weight.ndim == 2:
        return (noise(8, weight.shape[1 if isinstance(base, nn.Linear) else 0]),)
    raise NotMergeableError(f"the outputs of {type(base).__name__} can't be compared")


def _noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return random numbers that do not depend on the default precision and device of torch."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def _kind(module: Any, adapters: Sequence[str], moved: Collection[str]) -> Hashable:
    """Return a key that is equal for adapter modules whose merges differ in nothing but sizes."""
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
    return tuple((k, v) for k, v in vars(module).items() if isinstance(v, (*_SIMPLE, tuple)) and k not in _IGNORED)


def _devices(module: Any) -> list[torch.device]:
    return [d for d in {p.device for p in module.parameters()} if d.type == "cuda"]
