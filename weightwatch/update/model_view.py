"""The view of a model at one check: its parameters, adapter modules and saved copies."""

from collections.abc import Collection
from functools import cached_property

from torch import Tensor, nn

from weightwatch.update.layout import Layout, ModuleTree
from weightwatch.update.peft.modules import (
    Values,
    changes_base,
    inactive_copies,
    require_weights_change,
    saved_copies,
)
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.update.sharding.parameters import local_parameters
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import canonical


class ModelView:
    """What a check reads from a model. One view is built for each check and passed down.

    Args:
        model: Any ``nn.Module``: plain, PEFT, wrapped or sharded.
        ranks: The processes that measure together. Default: all processes if the model is sharded, else this one.
        before: Names of parameters that were trained earlier in the run. They count as trained even if they are frozen
            now.
        layout: The layout that an earlier view found. It is used as long as it fits.

    Attributes:
        model: The model.
        before: Names of parameters that were trained earlier in the run.
        parameters: Local shards of each parameter, by its name in the model.
        adapters: The adapter modules.
        copies: Name of each parameter of an active ``modules_to_save`` copy, with the name of its original.
        every: True if nothing requires a gradient; everything counts as trained then.
        ranks: The processes that measure together.
        layout: The layout of the model, for the next view.
        changed_by: The ``init_lora_weights`` of an adapter that changed the base when it was created; None if none did.

    Raises:
        WeightWatchError: A parameter is sharded in an unknown way, or an adapter does not change weights.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks | None = None,
        before: Collection[str] = (),
        layout: Layout | None = None,
    ) -> None:
        self.model, self.before = model, frozenset(before)
        tree = ModuleTree.of(model)
        self.layout = layout if layout is not None and layout.fits(tree) else Layout.of(model, tree)
        parameters = {name: tree.parameters[place] for name, place in self.layout.parameters.items()}
        flat = {path: tree.modules[place] for path, place in self.layout.flat.items()}
        self.parameters = local_parameters(flat, parameters)
        for name in before:  # most of them still are
            if name in self.parameters and not self.parameters[name].trained:
                self.parameters[name] = self.parameters[name]._replace(trained=True)
        wrappers = {path: tree.modules[place] for path, place in self.layout.wrappers.items()}
        require_weights_change(wrappers)
        self.adapters = self.layout.adapter_modules(tree, self.parameters)
        self.copies = saved_copies(wrappers, self.parameters, {id(p): name for name, p in parameters.items()})
        self.every = not any(parameter.trained for parameter in self.parameters.values())
        self.ranks = ranks or (Ranks.world() if self.sharded else ALONE)

    @cached_property
    def changed_by(self) -> str | None:
        """The ``init_lora_weights`` of an adapter that changed the base when it was made; None if none did."""
        return changes_base(dict(self.model.named_modules()))

    @property
    def base_name(self) -> str:
        """The path or Hub id in the model's config; empty if the config has none."""
        return str(getattr(getattr(self.model, "config", None), "_name_or_path", "") or "")

    @property
    def trained(self) -> frozenset[str]:
        """Names of the trained parameters."""
        return frozenset(name for name, parameter in self.parameters.items() if parameter.trained)

    @property
    def sharded(self) -> bool:
        """Whether a parameter is sharded."""
        return any(parameter.sharded for parameter in self.parameters.values())

    @cached_property
    def full(self) -> list[str]:
        """Names of the parameters that are trained directly, not by an adapter."""
        others = {name for adapted in self.adapters for name in adapted.own}.union(self.copies.values())
        others.update(inactive_copies(self.parameters, self.copies))
        if self.every and (self.adapters or self.copies):
            return list(self.copies)
        return [n for n, p in self.parameters.items() if (self.every or p.trained) and n not in others]

    @cached_property
    def direct(self) -> dict[str, LocalTensor]:
        """Local shards of the parameters that are trained directly, by their names in the plain model.

        Raises:
            WeightWatchError: Two of them have one name there.
        """
        found: dict[str, LocalTensor] = {}
        for key in self.full:
            if canonical(key) in found:
                raise WeightWatchError(
                    f"Two trained parameters are {canonical(key)} in the plain model, one of them {key}. Freeze one."
                )
            found[canonical(key)] = self.parameters[key]
        return found

    @cached_property
    def frozen(self) -> dict[str, LocalTensor]:
        """Local shards of what is not trained, by the names in the plain model.

        Parameters of adapters that are active but frozen have the names that they have in this model. Weights that an
        adapter is merged into at the moment are left out.
        """
        others = {name for adapted in self.adapters for name in adapted.own}
        others.update(self.full, inactive_copies(self.parameters, self.copies))
        merged = tuple(f"{a.path}.base_layer." for a in self.adapters if getattr(a.module, "merged_adapters", ()))
        found: dict[str, LocalTensor] = {}
        for name, local in self.parameters.items():
            if name not in others and not local.trained and not name.startswith(merged):
                plain = canonical(name)
                found[name if plain in found else plain] = local
        for adapted in self.adapters:
            found.update((name, self.parameters[name]) for name in adapted.frozen(self.every))
        return found

    @cached_property
    def values(self) -> Values:
        """Reader of the adapters' whole parameters. The first access is collective if they are sharded."""
        names = [name for adapted in self.adapters for name in adapted.own]
        gathered = self.ranks.gather({name: self.parameters[name] for name in names if self.parameters[name].sharded})

        def value(name: str) -> Tensor | None:
            if name in gathered:
                return gathered[name]
            return self.parameters[name].pieces[0].values if name in self.parameters else None

        return value

    def tied(self) -> dict[str, str]:
        """Return the names of tied parameters except the first of each, with the first: a tied head's embedding."""
        every = list(self.model.named_parameters(remove_duplicate=False))  # alive, so that each has an id of its own
        first: dict[int, str] = {}
        names = {canonical(name): first.setdefault(id(p), canonical(name)) for name, p in every}
        return {name: original for name, original in names.items() if name not in first.values()}

    def memory(self) -> set[int]:
        """Return the memory addresses of the model's weights, which differ from those of an optimizer's masters."""
        plain = (p for p in self.model.parameters() if type(p) is nn.Parameter)  # subclasses may have no storage
        return {parameter.untyped_storage().data_ptr() for parameter in plain if parameter.numel()}
