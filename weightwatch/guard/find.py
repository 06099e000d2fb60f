"""Which weights of a model a guard can change, and why not the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from weightwatch.guard.conditions import require_most
from weightwatch.guard.full import Full
from weightwatch.guard.parts import Factors, Part
from weightwatch.guard.trained import Trained
from weightwatch.guard.weight import Adapted, Direct, oriented
from weightwatch.measure.sums import resized_since
from weightwatch.update.change import Change, Difference
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.adapters import start_factors
from weightwatch.update.peft.lora import known
from weightwatch.update.peft.modules import AdapterModule, Values
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.parameters import named
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.precision import wide

TOGETHER = 32  # weights whose factors are stacked at a time
_ROUNDED = (torch.bfloat16, torch.float16)


def guarded(
    view: ModelView,
    reference: Reference,
    directions: Sequence[Direction],
    chosen: Callable[[str], bool],
    *,
    corrected: bool,
    main: bool = True,
) -> list[Direct | Adapted]:
    """Return the trained weights that directions have.

    Args:
        view: The model now.
        reference: θ₀.
        directions: The directions to keep out.
        chosen: Whether a weight is to be guarded, by its name.
        corrected: Whether the weights themselves will be corrected, not only their gradients.
        main: Whether this process counts what is whole on each process.

    Raises:
        WeightWatchError: A weight can't be guarded exactly; the message says why, and what to do. Or more than a small
            part of a direction lies in weights whose update is not known.
    """
    modules = dict(view.model.named_modules())
    parameters = named(view.model, modules)
    owners: dict[int, nn.Module] = {}
    for module in modules.values():
        for p in module.parameters(recurse=False):
            owners.setdefault(id(p), module)  # of a tied weight, the first: its name is that of the embedding
    adapters = {adapted.weight: adapted for adapted in view.adapters}
    starts = start_factors(view.adapters, reference.start)
    keys = dict(zip(view.direct, view.full, strict=True))

    def trained(name: str, key: str) -> Trained:
        return Trained.of(name, parameters.get(key), view.parameters[key], main)

    found: list[Direct | Adapted] = []
    update = Update(view, reference)
    left_out = {**update.left_out, **resized_since(update, directions)}
    require_most(left_out, directions, chosen)
    for name, change in update.items():
        ws = {k: direction.deltas[name] for k, direction in enumerate(directions) if name in direction.deltas}
        if not ws or not chosen(name) or name in left_out:
            continue
        if isinstance(change, Difference):
            direct = _direct(name, change, trained(name, keys[name]), ws, owners)
            found.append(direct)
            changed = [direct.parameter]
        else:
            adapted = _adapted(name, change, adapters.get(name), view.values, trained, ws, starts.get(name))
            found.append(adapted if main else replace(adapted, started=[0.0] * len(ws)))
            changed = [adapted.a, adapted.b]
        if corrected:
            for each in changed:
                _require_precise(name, each.parameter)
    return found


def parts(weights: Sequence[Direct | Adapted]) -> list[Part]:
    """Return the levers by which the weights are kept off the directions themselves."""
    found: list[Part] = []
    groups: dict[object, list[Adapted]] = {}
    for weight in weights:
        if isinstance(weight, Direct):
            where, ws = list(weight.directions), list(weight.directions.values())
            found.append(Full(weight.name, weight.parameter, weight.start, where, ws))
        else:
            kinds = tuple((k, w.rank if isinstance(w, LowRank) else None) for k, w in weight.directions.items())
            shapes = weight.a.shape, weight.b.shape, weight.by_left
            groups.setdefault((shapes, kinds, weight.a.device), []).append(weight)
    for alike in groups.values():
        found.extend(_factors(alike[first : first + TOGETHER]) for first in range(0, len(alike), TOGETHER))
    return found


def _direct(
    name: str,
    change: Difference,
    parameter: Trained,
    directions: Mapping[int, Delta],
    owners: Mapping[int, nn.Module],
) -> Direct:
    owner = owners[id(parameter.parameter)]
    by_column = isinstance(owner, nn.Embedding) or type(owner).__name__ == "Conv1D"
    return Direct(
        name,
        directions,
        parameter,
        lambda box: change.start(box).to(change.local.dtype),
        by_column and len(parameter.shape) > 1,
    )


def _adapted(
    name: str,
    change: Change,
    module: AdapterModule | None,
    values: Values,
    trained: Callable[[str, str], Trained],
    directions: Mapping[int, Delta],
    start: LowRank | None,
) -> Adapted:
    from peft.tuners.lora import LoraLayer

    if not isinstance(change, LowRank) or module is None or not isinstance(module.module, LoraLayer):
        kind = "an adapter" if module is None else type(module.module).__name__
        raise WeightWatchError(
            f"{name} is trained by {kind} whose change is not B A (DoRA, experts, another tuner), so it can't be kept "
            "off a direction exactly. Train with plain LoRA or the weights themselves, or leave the layer out with "
            "`layers:`."
        )
    adapters = module.adapters(every=False)
    if len(adapters) != 1:
        raise WeightWatchError(
            f"{len(adapters)} adapters are trained on {name}, and the guard can't tell which of them to change. Train "
            "one at a time."
        )
    form = f"lora_embedding_{{}}.{adapters[0]}" if module.module.lora_embedding_A else f"lora_{{}}.{adapters[0]}.weight"
    keys = [module.name(form.format(half)) for half in "AB"]
    a, b = (trained(name, key) for key in keys)
    by_left = change.limited == "left"
    if not (a if by_left else b).parameter.requires_grad:
        raise WeightWatchError(
            f"The factor of {name} by which a direction could be taken back is frozen. Train both factors of LoRA, or "
            "leave the layer out with `layers:`."
        )
    scale = module.scaling(adapters[0], lambda _: None)
    right, left = (known(values, key) for key in keys)
    now = LowRank(left, right, change.transposed, scale=scale)
    # A start that is not recorded is that of TRL's frozen copy `ref`, or zero.
    started = [
        _product(now, w) - _product(change, w) if start is None else _product(start, w) for w in directions.values()
    ]
    turned = {k: oriented(w, change.transposed) for k, w in directions.items()}
    return Adapted(name, turned, a, b, by_left, scale, started, left if by_left else right)


def _factors(alike: Sequence[Adapted]) -> Factors:
    by_left = alike[0].by_left
    left, right = [replace(w.b, turned=by_left) for w in alike], [replace(w.a, turned=by_left) for w in alike]
    return Factors(
        names=[weight.name for weight in alike],
        free=right if by_left else left,
        fixed=left if by_left else right,
        scale=[weight.scale for weight in alike],
        where=list(alike[0].directions),
        directions=[[oriented(w, by_left) for w in weight.directions.values()] for weight in alike],
        started=[weight.started for weight in alike],
    )


def _require_precise(name: str, parameter: nn.Parameter) -> None:
    """Refuse a weight in a precision in which corrections would be lost."""
    if parameter.dtype in _ROUNDED:
        raise WeightWatchError(
            f"{name} is trained in {str(parameter.dtype).removeprefix('torch.')}, in which the correction of one step "
            "is smaller than the distance between two numbers, and would be lost. Load the model with "
            "dtype=torch.float32 and train with bf16=True (autocast), or use `mode: gradient` or `mode: preventative`."
        )


def _product(start: LowRank, w: Delta) -> float:
    """Return ⟨start,w⟩ of one weight."""
    rows, columns = (wide(each).cpu() for each in start.oriented)
    if isinstance(w, Tensor):
        return float(((rows.T @ wide(w).cpu()) * columns).sum())
    others, across = (wide(each).cpu() for each in w.oriented)
    return float(((rows.T @ others) * (columns @ across.T)).sum())
