"""The layout of a model: which modules and parameters it has, and under which names.

Finding the names of all modules and parameters takes half of a check with adapters. So the layout is kept from check to
check, and is found anew when the tree of modules has changed: a module or a parameter was added, removed, replaced,
renamed or shared, or has another class. Nothing else is kept. Values, shapes, precisions, devices, what is trained and
which adapters are active are read at each check.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

from torch import nn

from weightwatch.update.peft.modules import AdapterModule, AdapterPlace, adapter_places, wrappers
from weightwatch.update.sharding.dtensor import reshard
from weightwatch.update.sharding.fsdp1 import fsdp1_modules
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.update.sharding.parameters import local_parameters
from weightwatch.vectors.weights.names import unwrapped

Structure: TypeAlias = tuple[Sequence[object], ...]
"""What two trees are compared by: see ``ModuleTree.structure``."""


@dataclass(frozen=True)
class ModuleTree:
    """The modules of a model and the parameters in them.

    FSDP2 modules that still have their gathered weights after a forward pass are resharded first, which replaces their
    parameters.

    Attributes:
        modules: All modules, each once, breadth first.
        parameters: The parameters of one module after the other, also tied ones; None where a module has none (a linear
            layer without a bias).
        structure: Classes of the modules; names and identities of their children; names and identities of their
            parameters. Identities are addresses, and the tree holds all objects while it is compared. So two trees of
            equal structure have the same names and share the same modules and parameters in the same places, even if
            an address belongs to another object by now.
    """

    modules: Sequence[nn.Module]
    parameters: Sequence[Any]
    structure: Structure

    @classmethod
    def of(cls, model: nn.Module) -> "ModuleTree":
        """Return the tree of a model as it is now."""
        found: dict[int, nn.Module] = {}
        level = {id(model): model}
        while level:
            found.update(level)
            level = {
                id(child): child
                for module in level.values()
                for child in module._modules.values()
                if child is not None and id(child) not in found
            }
        modules = list(found.values())
        reshard(modules)
        children, own = [module._modules for module in modules], [module._parameters for module in modules]
        parameters = [parameter for several in own for parameter in several.values()]
        structure = (
            [type(module) for module in modules],
            [tuple(several) for several in children],
            [id(child) for several in children for child in several.values()],
            [tuple(several) for several in own],
            [id(parameter) for parameter in parameters],
        )
        return cls(modules, parameters, structure)


@dataclass(frozen=True)
class Layout:
    """The names in a model, and where in its tree the named is. It holds neither modules nor parameters.

    Attributes:
        structure: The structure of the tree.
        parameters: Place of each parameter in ``ModuleTree.parameters``, by its name in the model. A tied parameter has
            its first name only.
        adapters: The adapter modules, each with its place in ``ModuleTree.modules``.
        wrappers: Place of each module of PEFT that is no adapter module, by its path.
        flat: Place of each FSDP1 module, by its path.
    """

    structure: Structure
    parameters: Mapping[str, int]
    adapters: Sequence[tuple[int, AdapterPlace]]
    wrappers: Mapping[str, int]
    flat: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, tree: ModuleTree) -> "Layout":
        """Find the layout of a model.

        Raises:
            WeightWatchError: A parameter is sharded in an unknown way.
        """
        places = {id(module): place for place, module in enumerate(tree.modules)}
        first = list(accumulate((len(module._parameters) for module in tree.modules), initial=0))
        modules = dict(model.named_modules())
        names: dict[int, str] = {}
        parameters: dict[str, int] = {}
        for path, module in modules.items():
            for place, (key, parameter) in enumerate(module._parameters.items(), first[places[id(module)]]):
                if parameter is not None and id(parameter) not in names:
                    names[id(parameter)] = unwrapped(f"{path}.{key}" if path else key)
                    parameters[names[id(parameter)]] = place
        wrapped = dict(fsdp1_modules(modules))
        local = local_parameters(wrapped, {name: tree.parameters[place] for name, place in parameters.items()})
        return cls(
            tree.structure,
            parameters,
            [(places[id(module)], place) for module, place in adapter_places(modules, local, names)],
            {path: places[id(module)] for path, module in wrappers(modules)},
            {path: places[id(module)] for path, module in wrapped.items()},
        )

    def fits(self, tree: ModuleTree) -> bool:
        """Whether it is the layout of a tree. That of FSDP1, which flattens parameters, is found at each check."""
        return not self.flat and self.structure == tree.structure

    def adapter_modules(self, tree: ModuleTree, parameters: Mapping[str, LocalTensor]) -> list[AdapterModule]:
        """Return the adapter modules as they are now.

        Args:
            tree: The tree of the model.
            parameters: Local shards of its parameters.
        """
        return [place.read(tree.modules[position], parameters) for position, place in self.adapters]
