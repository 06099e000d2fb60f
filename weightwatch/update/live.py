"""The update τ = θ_t − θ₀ of a model in training: its trained tensors, and the change of each."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial

from weightwatch.update.change import Change, Difference
from weightwatch.update.frozen import FrozenBase
from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.adapters import changes, is_additive, rebased
from weightwatch.update.reference import Reference, StateDict
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import is_resized


class Update(Mapping[str, Change]):
    """The change of each trained tensor of a model since θ₀, by parameter name.

    A tensor is trained if it requires a gradient. If no tensor does (a model loaded for inference), the active adapters
    count as trained, or without adapters all tensors.

    Args:
        view: The model now.
        reference: θ₀ of fully trained tensors, and of adapters that did not start at zero; the rest of θ₀ is in the
            model. A tensor that was frozen when the run began and is not in the reference is left out.

    Attributes:
        left_out: Trained tensors that can't be compared with θ₀, each with the reason.
        unfrozen: Names in the model of the trained parameters that were frozen when the run began, and are left out.
        rounded: Frozen tensors with rounding errors of merging and unmerging an adapter, which are not measured.

    Raises:
        WeightWatchError: The model is trained in an unsupported way, or θ₀ of a tensor is missing or has another shape.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> start = {"weight": model.weight.detach().clone()}
        >>> update = Update(ModelView(model), Reference.of(start))
        >>> update["weight"].shape, update.left_out
        ((1, 2), {})
    """

    def __init__(self, view: ModelView, reference: Reference | None = None) -> None:
        reference = reference or Reference()
        self.left_out: dict[str, str] = {}
        self._changes: dict[str, Change] = {}
        self.rounded: set[str] = set()
        self.unfrozen: set[str] = set()
        start = reference.start
        for adapted in view.adapters:
            self._changes.update(changes(adapted, view.values, start, view.every))
        for path in start.adapters.keys() - {adapted.path for adapted in view.adapters}:
            raise WeightWatchError(
                f"The adapter {start.adapters[path][0]!r} of {path}, with which the run began, is gone from the model "
                "(unloaded or deleted), so the update can't be measured. Keep it, or start a new run."
            )
        memory = view.memory() if isinstance(reference.weights, StateDict) else set()
        for key, (name, parameter) in zip(view.full, view.direct.items(), strict=True):
            if name in self._changes:
                raise WeightWatchError(
                    f"{name} is trained directly and by an adapter, which is not supported. Freeze one of them."
                )
            known = reference.weights is not None and name in reference.weights
            if key in view.copies and not known and not parameter.sharded:
                (original,) = view.parameters[view.copies[key]].pieces
                self._changes[name] = Difference(parameter, original.values.__getitem__)
            elif not known and view.before and key not in view.before:
                self.unfrozen.add(key)
                self.left_out[name] = "it was frozen when the run began, and its start is in no checkpoint"
            else:
                self._add_full(name, parameter, reference, memory)
        if not self._changes:
            raise WeightWatchError("The model has no trained parameters: nothing requires a gradient.")
        if reference.frozen is not None:
            self._add_base(view, reference, reference.frozen)

    def __getitem__(self, name: str) -> Change:
        return self._changes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def _add_full(self, name: str, parameter: LocalTensor, reference: Reference, memory: Collection[int]) -> None:
        weights = reference.weights
        if weights is None or name not in weights:
            raise WeightWatchError(
                f"θ₀ of {name} is unknown: pass reference=, a state dict or the path of the base checkpoint."
            )
        if weights.shape(name) != parameter.shape:
            advice = "Pass the checkpoint that training started from."
            self.left_out[name] = resized(name, weights.shape(name), parameter.shape, "the model", advice)
            return
        own = {piece.values.untyped_storage().data_ptr() for piece in parameter.pieces if piece.values.numel()}
        if isinstance(weights, StateDict) and weights.memory(name) in own.union(memory):
            raise WeightWatchError(
                f"The reference of {name} shares the model's own memory, so training changes it too. Pass a copy from "
                "before training: {name: tensor.clone() for name, tensor in model.state_dict().items()}."
            )
        stored = not isinstance(weights, StateDict)
        self._changes[name] = Difference(parameter, lambda box: weights.read(name, box), stored)

    def _add_base(self, view: ModelView, reference: Reference, frozen: FrozenBase) -> None:
        """Add the change of the frozen weights, into which an adapter may have been merged in mid-run."""
        changed = frozen.changed(view)
        self.rounded = {name for name, beyond in changed.items() if not beyond}
        moved = {name for name, beyond in changed.items() if beyond}
        for name in moved.intersection(view.direct):  # the original of a copy in modules_to_save
            if reference.weights is None or name not in reference.weights:
                self.left_out[name] = "its original, which it is measured from, has changed since the run began"
                self._changes.pop(name, None)
        moved.difference_update(view.direct)
        if not moved:
            return
        own = {name for adapted in view.adapters for name in (*adapted.own, *adapted.base)}
        beneath = [name for name in self._changes if name in view.frozen and name not in view.direct]
        tensors = {name: view.frozen[name] for name in {*beneath, *moved}}  # of all, in case a sample missed a change
        base = frozen.checkpoint(tensors)
        additive = all(is_additive(adapted, reference.start) for adapted in view.adapters)
        if base is not None and additive and not any(local.sharded for local in tensors.values()):
            for name, local in sorted(tensors.items()):
                start, change = partial(base.read, name), self._changes.get(name)
                self._changes[name] = rebased(change, local, start) if change else Difference(local, start)
        elif moved.isdisjoint(own):
            self.left_out.update(dict.fromkeys(moved, "it is frozen, and has changed since the run began"))
        else:
            raise WeightWatchError(
                f"The frozen weights have changed since the run began ({min(moved)} and {len(moved) - 1} others), as "
                "when an adapter is merged into them (ReLoRA). The update can be measured only from a local checkpoint "
                "of the base that the model's config names, for LoRA on weights that are neither quantised nor sharded."
            )


def resized(name: str, old: tuple[int, ...], new: tuple[int, ...], where: str, advice: str, source: str = "θ₀") -> str:
    """Return why a tensor with two shapes is left out: the vocabulary of an embedding or a head was resized.

    Args:
        name: Name of the tensor.
        old: Its shape in ``source``: θ₀, or a direction.
        new: Its shape in ``where``: the model, or a checkpoint.
        where: See ``new``; for the message, like ``source``.
        advice: What to do if the shapes differ in another way.
        source: See ``old``.

    Raises:
        WeightWatchError: The shapes differ in another way.
    """
    reason = f"{source} has shape {old} for {name} where {where} has {new}"
    if not is_resized(name, old, new):
        raise WeightWatchError(f"{reason}. {advice}")
    return f"{reason}: the vocabulary was resized"
