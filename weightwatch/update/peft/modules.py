"""Adapter modules: the modules of a model that carry PEFT adapters, and the adapters' parameters.

PEFT is imported only where a model can have been made with it. Parameters have the names that
``sharding.parameters.named`` returns.
"""

import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import KEEPS_BASE
from weightwatch.vectors.weights.names import canonical, unwrapped

Values = Callable[[str], Tensor | None]
"""Returns the whole value of an adapter's parameter by its name; None if there is no such parameter."""

SCALING = ".scaling."
"""What stands between the path of an adapter module and an adapter's name in the name of its recorded scaling."""

OUT = "Train with LoRA, DoRA or another adapter that PEFT can merge, or train the weights themselves."
"""What to do instead of training an adapter that can't be measured."""

_INIT = re.compile(r"init_(?:\w+_)?weights")
_BESIDE_WEIGHTS = ("XLORA", "SHADOW")  # a router over adapters, a model beside the model


@dataclass(frozen=True)
class Start:
    """The adapters of a model at the start of a run.

    Attributes:
        values: Their parameters, by name in the model, in modules whose change was not zero; and their scalings, as
            ``{path of the module}.scaling.{adapter}``.
        frozen: The adapters that were active but frozen, and so are part of θ₀. None: it is not known which were.
        taken: Whether the start was taken. If not, the frozen copy that TRL keeps as the adapter ``ref`` is the start.
    """

    values: Mapping[str, Tensor] = field(default_factory=dict)
    frozen: frozenset[str] | None = None
    taken: bool = False

    @cached_property
    def adapters(self) -> dict[str, list[str]]:
        """The adapters that have values, by the path of their module."""
        found: dict[str, list[str]] = {}
        for name in self.values:
            path, between, adapter = name.rpartition(SCALING)
            if between:
                found.setdefault(path, []).append(adapter)
        return found


@dataclass(frozen=True)
class AdapterModule:
    """A module of PEFT (``BaseTunerLayer``) at one check: a base layer and its adapters.

    Attributes:
        path: Name of the module in the model.
        module: The module.
        names: Names of the adapters' parameters: the name in the module, and the name in the model. The parameters of
            the base layer are not among them.
        owners: The adapter of each parameter, by the name in the module. Parameters that adapters share have none.
        trained: Names in the model of the parameters that are trained.
        sharded: Whether a parameter of the adapters or of the base layer is sharded.
    """

    path: str
    module: Any
    names: Mapping[str, str]
    owners: Mapping[str, str]
    trained: frozenset[str]
    sharded: bool = False

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the adapters' parameters in the model."""
        return tuple(self.names.values())

    @property
    def weight(self) -> str:
        """Name of the base layer's weight in the plain model."""
        return self.base_parameter(getattr(self.module, "parameter_name", "weight"))

    @property
    def base(self) -> list[str]:
        """Names of the base layer's parameters in the plain model."""
        return [self.base_parameter(name) for name, _ in self.module.get_base_layer().named_parameters()]

    def base_parameter(self, name: str) -> str:
        """Return the name in the plain model of a parameter of the base layer."""
        return canonical(f"{self.path}.base_layer.{name}")

    def adapters(self, every: bool) -> list[str]:
        """Return the active adapters that count: the trained ones, or with ``every`` all of them."""
        trained = {owner for local, owner in self.owners.items() if every or self.names[local] in self.trained}
        return [adapter for adapter in self.active if adapter in trained]

    def frozen(self, every: bool) -> list[str]:
        """Return the names in the model of the parameters of active adapters that are not trained at all."""
        if len(self.trained) == len(self.names):
            return []
        still = set(self.active).difference(self.adapters(every))
        return [self.names[local] for local, owner in self.owners.items() if owner in still]

    def started(self, start: Start) -> list[str]:
        """Return the adapters whose start is recorded, those included that the module has no longer."""
        if not start.values:
            return []
        have = {owner: None for local, owner in self.owners.items() if self.names[local] in start.values}
        have.update(dict.fromkeys(start.adapters.get(self.path, ())))
        order = {adapter: place for place, adapter in enumerate(self.module.active_adapters)}
        return sorted(have, key=lambda adapter: (order.get(adapter, len(order)), adapter))

    def name(self, local: str) -> str:
        """Return the name in the model of an adapter's parameter, which may have been deleted."""
        return self.names.get(local, f"{self.path}.{local}")

    def scaling(self, adapter: str, value: Values) -> float:
        """Return the scaling of an adapter: as recorded among some values, or else as it is now."""
        recorded = value(f"{self.path}{SCALING}{adapter}")
        return float(self.module.scaling[adapter] if recorded is None else recorded)

    @cached_property
    def active(self) -> list[str]:
        """The active adapters of this module, in the order in which PEFT applies them."""
        available = self.available
        return [adapter for adapter in self.module.active_adapters if adapter in available]

    @cached_property
    def available(self) -> set[str]:
        """All adapters of this module, active or not."""
        return set(self.owners.values())


@dataclass(frozen=True)
class AdapterPlace:
    """What is known of an adapter module from the tree of modules alone.

    Attributes:
        path: See ``AdapterModule``.
        names: See ``AdapterModule``.
        owners: See ``AdapterModule``.
        every: Names in the model of all its parameters, those of the base layer included.
    """

    path: str
    names: Mapping[str, str]
    owners: Mapping[str, str]
    every: Sequence[str]

    def read(self, module: nn.Module, parameters: Mapping[str, LocalTensor]) -> AdapterModule:
        """Return the adapter module as it is now.

        Args:
            module: The module in this place.
            parameters: Local shards of the model's parameters, as ``local_parameters`` returns them.
        """
        return AdapterModule(
            self.path,
            module,
            self.names,
            self.owners,
            frozenset(name for name in self.names.values() if parameters[name].trained),
            any(parameters[name].sharded for name in self.every),
        )


def adapter_places(
    modules: Mapping[str, nn.Module], parameters: Collection[str], names: Mapping[int, str]
) -> Iterator[tuple[nn.Module, AdapterPlace]]:
    """Yield the adapter modules of a model. Modules that share their adapters and their weight are yielded once.

    Args:
        modules: All modules of the model by name.
        parameters: Names of its parameters, as ``local_parameters`` returns them.
        names: Name of each parameter by its ``id``; the first name of a tied one.
    """
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    known = set(names.values())
    flattened = [name for name in parameters if name not in known]  # by FSDP1: no longer parameters of their modules
    seen: set[object] = set()
    for path, module in modules.items():
        if not isinstance(module, BaseTunerLayer) or id(module) in seen:
            continue
        inside = _inside(module)
        seen.update(id(part) for part in inside.values())
        named = [
            (local, p, names[id(p)])
            for local, p in module.named_parameters(remove_duplicate=False)
            if names.get(id(p)) in parameters
        ]
        above = unwrapped(f"{path}.")
        local_names = {local: name for local, _, name in named}
        local_names.update((name.removeprefix(above), name) for name in flattened if name.startswith(above))
        own = {local: name for local, name in local_names.items() if _is_own(local, inside)}
        shared = frozenset(own.values()), frozenset(id(p) for local, p, _ in named if local not in own)
        if not own or shared in seen:
            continue
        seen.add(shared)
        available = module._get_available_adapters()
        owners = {local: owner for local in own if (owner := _owner(local, available)) is not None}
        yield module, AdapterPlace(above.removesuffix("."), own, owners, [name for _, _, name in named])


def wrappers(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the path and the module of each module of PEFT that is no adapter module: ``PeftModel``, and wrappers."""
    if "peft" not in sys.modules:
        return
    from peft import PeftModel
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in modules.items():
        if isinstance(module, PeftModel | AuxiliaryTrainingWrapper):
            yield path, module


def saved_copies(
    modules: Mapping[str, nn.Module], parameters: Mapping[str, LocalTensor], names: Mapping[int, str]
) -> dict[str, str]:
    """Return the name of each parameter of an active ``modules_to_save`` copy, with the name of its original.

    Args:
        modules: The model's modules that ``wrappers`` yields, by name.
        parameters: Local shards of its parameters, as ``local_parameters`` returns them.
        names: Name of each parameter by its ``id``.
    """
    if not modules:
        return {}
    from peft.utils.other import ModulesToSaveWrapper

    found = {}
    for path, module in modules.items():
        if isinstance(module, ModulesToSaveWrapper):
            originals = dict(module.original_module.named_parameters())
            for adapter in module.active_adapters[:1]:
                for local in originals:
                    copied = unwrapped(f"{path}.modules_to_save.{adapter}.{local}")
                    if copied in parameters:
                        found[copied] = names[id(originals[local])]
    return found


def require_weights_change(modules: Mapping[str, nn.Module]) -> None:
    """Refuse adapters that change something other than weights.

    Args:
        modules: The model's modules that ``wrappers`` yields, by name.

    Raises:
        WeightWatchError: There is such an adapter.
    """
    if not modules:
        return
    from peft import PeftModel
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    for path, module in modules.items():
        if isinstance(module, PeftModel):
            for adapter, config in module.peft_config.items():
                beside = adapter in module.active_adapters and (config.is_prompt_learning or config.is_adaption_prompt)
                if beside or config.peft_type in _BESIDE_WEIGHTS:
                    raise WeightWatchError(
                        f"The adapter {adapter!r} is of type {config.peft_type.value}, which is not supported, since "
                        f"it changes the model's inputs or its computation instead of its weights. {OUT}"
                    )
        elif not isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
            raise WeightWatchError(
                f"{path} is trained through PEFT's {type(module).__name__}, which is not supported. Train it with "
                "modules_to_save."
            )


def inactive_copies(parameters: Iterable[str], copies: Collection[str]) -> set[str]:
    """Return the parameters of ``modules_to_save`` copies that are not active, such as those of another adapter."""
    return {name for name in parameters if ".modules_to_save." in name and name not in copies}


def changes_base(modules: Mapping[str, nn.Module]) -> str | None:
    """Return the ``init_lora_weights`` of an adapter that changed the base when it was created; None if none did."""
    configs = (getattr(module, "peft_config", None) for module in modules.values())
    each = (config for several in configs if isinstance(several, dict) for config in several.values())
    kinds = [getattr(config, "init_lora_weights", True) for config in each]
    return next((str(kind) for kind in kinds if kind not in KEEPS_BASE), None)


def starts_at_random(modules: Iterable[nn.Module]) -> str | None:
    """Return the setting by which an adapter's change was random when it was created; None if none was."""
    configs = (getattr(module, "peft_config", None) for module in modules)
    each = (config for several in configs if isinstance(several, dict) for config in several.values())
    settings = (key for config in each for key, value in vars(config).items() if value is False)
    return next((f"{key}=False" for key in settings if _INIT.fullmatch(key)), None)


def _owner(local: str, available: Collection[str]) -> str | None:
    """Return the adapter that a parameter belongs to, by its name in the module: the adapter may be called "weight"."""
    return next((part for part in local.split(".")[1:] if part in available), None)


def _inside(module: Any) -> dict[str, nn.Module]:
    """Return the adapter modules inside an adapted ``nn.MultiheadAttention``: they are merged with it."""
    if not isinstance(module.get_base_layer(), nn.MultiheadAttention):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {f"{path}.": part for path, part in module.named_modules() if path and isinstance(part, BaseTunerLayer)}


def _is_own(local: str, inside: Mapping[str, nn.Module]) -> bool:
    """Whether a parameter belongs to an adapter, not to the base layer."""
    above = next((path for path in inside if local.startswith(path)), "")
    return not local.removeprefix(above).startswith("base_layer.")
