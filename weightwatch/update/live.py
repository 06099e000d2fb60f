"""The update τ = θ_t − θ₀ of a model in training: which tensors are trained, and how each has changed."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import Tensor, nn

from weightwatch.update.change import Change, Difference
from weightwatch.update.peft.adapters import changes
from weightwatch.update.peft.modules import Values, layers, saved_copies
from weightwatch.update.reference import Reference, StateDict
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.update.sharding.shards import Held, held, named
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import canonical, indexed


class Parts:
    """What a model is made of: its parameters, its layers with adapters, its copies under ``modules_to_save``.

    Args:
        model: The model.
        before: Names of parameters that were trained earlier in the run: they still count if they are frozen now.

    Attributes:
        parameters: What this process holds of each parameter; see ``shards.held``.
        layers: The layers with adapters.
        copies: Name of each trained copy, with that of its original.
        every: Nothing requires a gradient, so that everything counts as trained.
    """

    def __init__(self, model: nn.Module, before: Collection[str] = ()) -> None:
        modules = dict(model.named_modules())
        parameters = named(model, modules)
        names = {id(parameter): name for name, parameter in parameters.items()}
        self.parameters = held(model, modules, parameters)
        for name in before:  # most of them still are
            if name in self.parameters and not self.parameters[name].trained:
                self.parameters[name] = replace(self.parameters[name], trained=True)
        self.layers = list(layers(modules, self.parameters, names))
        self.copies = saved_copies(modules, self.parameters, names)
        self.every = not any(parameter.trained for parameter in self.parameters.values())

    def full(self) -> list[str]:
        """Return the names of the parameters that are trained themselves, not through an adapter."""
        held_by_adapters = {name for layer in self.layers for name in layer.own}.union(self.copies.values())
        if self.every and (self.layers or self.copies):
            return list(self.copies)
        return [n for n, p in self.parameters.items() if (self.every or p.trained) and n not in held_by_adapters]

    def adapter_values(self, ranks: Ranks) -> Values:
        """Return a reader of the adapters' whole parameters; those that are sharded are put together at once."""
        names = [name for layer in self.layers for name in layer.own]
        gathered = ranks.gather({name: self.parameters[name] for name in names if self.parameters[name].sharded})

        def value(name: str) -> Tensor | None:
            if name in gathered:
                return gathered[name]
            return self.parameters[name].pieces[0].values if name in self.parameters else None

        return value

    @property
    def trained(self) -> frozenset[str]:
        """Names of the parameters that are trained."""
        return frozenset(name for name, parameter in self.parameters.items() if parameter.trained)

    @property
    def sharded(self) -> bool:
        """Whether a parameter is spread over processes."""
        return any(parameter.sharded for parameter in self.parameters.values())


class Update(Mapping[str, Change]):
    """How each trained tensor of a model differs from θ₀, by parameter name.

    What is trained is what requires a gradient. In a model in which nothing does (loaded for inference), it is the
    active adapters, or all tensors where there are none.

    Args:
        model: Any ``nn.Module``; PEFT models, wrapped and sharded models included.
        reference: θ₀ where the model itself doesn't hold it: of fully trained tensors, and of adapters that did not
            start at zero.
        ranks: The processes that measure together. Sharded models need all of theirs.
        before: Names of parameters that were trained earlier in the run. They count even if they are frozen now; one
            that was frozen then and whose θ₀ is unknown is left out.

    Attributes:
        trained: Names of the trained parameters, as the model has them.
        left_out: Trained tensors that can't be compared with θ₀, each with the reason.

    Raises:
        WeightWatchError: The model is trained in a way whose update can't be read exactly, or θ₀ of a tensor is
            missing or has another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: Reference | None = None,
        ranks: Ranks = ALONE,
        before: Collection[str] = (),
    ) -> None:
        reference = reference or Reference()
        parts = Parts(model, before)
        self.trained = parts.trained
        values = parts.adapter_values(ranks)
        self.left_out: dict[str, str] = {}
        self._changes: dict[str, Change] = {}
        for layer in parts.layers:
            self._changes.update(changes(layer, values, reference.adapters, parts.every))
        memory = _memory(model) if isinstance(reference.weights, StateDict) else set()
        for key in parts.full():
            name, parameter = canonical(key), parts.parameters[key]
            if name in self._changes:
                raise WeightWatchError(
                    f"{name} is trained itself and by an adapter at once, which is not supported. Freeze one."
                )
            known = reference.weights is not None and name in reference.weights
            if key in parts.copies and not known and not parameter.sharded:
                (original,) = parts.parameters[parts.copies[key]].pieces
                self._changes[name] = Difference(parameter, original.values.__getitem__)
            elif not known and before and key not in before:
                self.left_out[name] = "it was frozen when the run began, and no checkpoint holds its start"
            else:
                self._add_full(name, parameter, reference, memory)
        if not self._changes:
            raise WeightWatchError("The model has no trained parameters: nothing requires a gradient.")

    def __getitem__(self, name: str) -> Change:
        return self._changes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def _add_full(self, name: str, parameter: Held, reference: Reference, memory: Collection[int]) -> None:
        weights = reference.weights
        if weights is None or name not in weights:
            raise WeightWatchError(
                f"θ₀ of {name} is unknown: pass reference=, a state dict or the path of the base checkpoint."
            )
        if weights.shape(name) != parameter.shape:
            reason = f"θ₀ has shape {weights.shape(name)} for {name} where the model has {parameter.shape}"
            if not resized(name, weights.shape(name), parameter.shape):
                raise WeightWatchError(f"{reason}. Pass the checkpoint that training started from.")
            self.left_out[name] = f"{reason}: the vocabulary was resized"
            return
        own = {piece.values.untyped_storage().data_ptr() for piece in parameter.pieces if piece.values.numel()}
        if isinstance(weights, StateDict) and weights.memory(name) in own.union(memory):
            raise WeightWatchError(
                f"The reference of {name} is the model's own memory, so it moves along in training. Take a "
                "copy before training: {name: tensor.clone() for name, tensor in model.state_dict().items()}."
            )
        self._changes[name] = Difference(parameter, lambda box: weights.read(name, box))


def _memory(model: nn.Module) -> set[int]:
    """Return where a model's weights lie themselves: what is measured may be an optimizer's masters of them."""
    plain = (parameter for parameter in model.parameters() if type(parameter) is nn.Parameter)  # others may have none
    return {parameter.untyped_storage().data_ptr() for parameter in plain if parameter.numel()}


def resized(name: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether two shapes of a tensor are those of an embedding or head before and after its vocabulary was resized."""
    return not indexed(name) and len(ours) == len(theirs) and ours[:1] != theirs[:1] and ours[1:] == theirs[1:]
