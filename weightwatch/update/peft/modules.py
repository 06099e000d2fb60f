"""Adapter modules: the modules of a model that carry PEFT adapters, and the adapters' parameters.

PEFT is imported only where a model can have been made with it. Parameters go by the names of ``sharding.parameters``.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import canonical, unwrapped
from weightwatch.vectors.weights.peft_adapter import KEEPS_BASE

Values = Callable[[str], Tensor | None]
"""Gives the whole value of an adapter's parameter by its name; None where there is none."""

OUT = "Train with LoRA, DoRA or another adapter that PEFT can merge, or train the weights themselves."
"""What to do about an adapter that can't be measured."""

_BESIDE_WEIGHTS = ("XLORA", "SHADOW")  # a router over adapters, a model beside the model


@dataclass(frozen=True)
class AdapterModule:
    """A layer with adapters.

    Attributes:
        path: Its name in the model.
        module: PEFT's layer.
        names: Names of the adapters' parameters, those in the layer with those in the model. Not of the layer beneath,
            whose bias may train.
        holders: Of each name in the layer, the adapter that it belongs to; not of what is no single adapter's.
        trained: The names in the model of those that are trained.
        sharded: A parameter of the adapters or of the layer beneath is spread over processes.
    """

    path: str
    module: Any
    names: Mapping[str, str]
    holders: Mapping[str, str]
    trained: frozenset[str]
    sharded: bool = False

    @property
    def own(self) -> tuple[str, ...]:
        """The adapters' parameters by their names in the model."""
        return tuple(self.names.values())

    @property
    def weight(self) -> str:
        """Name of the weight beneath."""
        return self.beneath(getattr(self.module, "parameter_name", "weight"))

    def beneath(self, name: str) -> str:
        """Return the name in the plain model of a parameter of the layer beneath."""
        return canonical(f"{self.path}.base_layer.{name}")

    def adapters(self, every: bool) -> list[str]:
        """Return the active adapters of this layer whose change counts: those that are trained, or all."""
        trained = {holder for local, holder in self.holders.items() if every or self.names[local] in self.trained}
        return [adapter for adapter in self.module.active_adapters if adapter in trained]

    def with_values(self, adapters: Sequence[str], value: Values) -> list[str]:
        """Return those of some adapters that have values."""
        have = {holder for local, holder in self.holders.items() if value(self.names[local]) is not None}
        return [adapter for adapter in adapters if adapter in have]

    @property
    def active(self) -> list[str]:
        """The active adapters of this layer, in the order in which they act."""
        available = self.available
        return [adapter for adapter in self.module.active_adapters if adapter in available]

    @property
    def available(self) -> set[str]:
        """All adapters of this layer, the active ones or not."""
        return set(self.holders.values())


def adapter_modules(
    modules: Mapping[str, nn.Module], parameters: Mapping[str, LocalTensor], names: Mapping[int, str]
) -> Iterator[AdapterModule]:
    """Yield the layers with adapters of their own; one that shares another's adapters and weight comes once.

    Args:
        modules: All modules of a model.
        parameters: Its local shards, as ``local_parameters`` returns them.
        names: Its parameters' names by their identity: of one with several names, the first.

    Raises:
        WeightWatchError: The model has adapters that change no weights.
    """
    if "peft" not in sys.modules:
        return
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    known = set(names.values())
    flattened = [name for name in parameters if name not in known]  # by FSDP: no longer parameters of their modules
    seen: set[object] = set()
    for path, module in modules.items():
        if isinstance(module, PeftModel | AuxiliaryTrainingWrapper):
            _require_weights_change(path, module)
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
        held = {local: name for local, _, name in named}
        held.update((name.removeprefix(above), name) for name in flattened if name.startswith(above))
        own = {local: name for local, name in held.items() if _is_own(local, inside)}
        shared = frozenset(own.values()), frozenset(id(p) for local, p, _ in named if local not in own)
        if not own or shared in seen:
            continue
        seen.add(shared)
        available = module._get_available_adapters()
        holders = {local: part for local in own for part in local.split(".")[1:] if part in available}
        yield AdapterModule(
            unwrapped(f"{path}.").removesuffix("."),
            module,
            own,
            holders,
            frozenset(name for name in own.values() if parameters[name].trained),
            any(parameters[name].sharded for _, _, name in named if name in parameters),
        )


def saved_copies(
    modules: Mapping[str, nn.Module], parameters: Mapping[str, LocalTensor], names: Mapping[int, str]
) -> dict[str, str]:
    """Return the names of the active copies under PEFT's ``modules_to_save``, each with that of its original.

    Args:
        modules: All modules of a model.
        parameters: Its local shards, as ``local_parameters`` returns them.
        names: Its parameters' names by their identity.
    """
    if "peft" not in sys.modules:
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


def changes_base(modules: Mapping[str, nn.Module]) -> str | None:
    """Return the ``init_lora_weights`` of an adapter that changed the base when it was made; None if none did."""
    configs = (getattr(module, "peft_config", None) for module in modules.values())
    each = (config for several in configs if isinstance(several, dict) for config in several.values())
    kinds = [getattr(config, "init_lora_weights", True) for config in each]
    return next((str(kind) for kind in kinds if kind not in KEEPS_BASE), None)


def _inside(module: Any) -> dict[str, nn.Module]:
    """Return the layers with adapters that attention's adapter has put inside it: they are merged with it."""
    if not isinstance(module.get_base_layer(), nn.MultiheadAttention):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {f"{path}.": part for path, part in module.named_modules() if path and isinstance(part, BaseTunerLayer)}


def _is_own(local: str, inside: Mapping[str, nn.Module]) -> bool:
    """Whether a parameter is an adapter's, and not of the layer beneath."""
    above = next((path for path in inside if local.startswith(path)), "")
    return not local.removeprefix(above).startswith("base_layer.")


def _require_weights_change(path: str, module: nn.Module) -> None:
    """Make sure that a model's adapters change its weights."""
    from peft import PeftModel
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, PeftModel):
        for adapter, config in module.peft_config.items():
            beside = adapter in module.active_adapters and (config.is_prompt_learning or config.is_adaption_prompt)
            if beside or config.peft_type in _BESIDE_WEIGHTS:
                raise WeightWatchError(
                    f"The adapter {adapter!r} is of type {config.peft_type.value}, which is not supported, since it "
                    f"changes what the model is given or computes beside its weights. {OUT}"
                )
    elif not isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
        raise WeightWatchError(
            f"{path} is trained through PEFT's {type(module).__name__}, which is not supported. Train it with "
            "modules_to_save."
        )
