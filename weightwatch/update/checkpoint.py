"""The update τ = θ_t − θ₀ of a checkpoint on disk, in the forms of a live model's update."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from weightwatch.update.change import Change, Streamed
from weightwatch.update.live import resized
from weightwatch.update.peft.lora import REF
from weightwatch.update.peft.modules import SCALING
from weightwatch.update.reference import values_at
from weightwatch.update.snapshot import Snapshot
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank, join
from weightwatch.vectors.weights import full_copies
from weightwatch.vectors.weights.adapter_config import NotFactorsError, is_adapter
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import architecture
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.peft_adapter import PeftAdapter
from weightwatch.vectors.weights.reader import FLOATS, Opener, Unmapped
from weightwatch.vectors.weights.tied import copies

Source = Checkpoint | Snapshot

# Buffers in old checkpoints: sine tables, causal masks.
_BUFFER = re.compile(r"(?:rotary_emb\.inv_freq|rotary_emb\.(?:cos|sin)_cached|\.attn\.(?:masked_)?bias)$")
# The adapter's name comes after the match. PEFT omits it in an adapter's file.
_ADAPTER_NAME = re.compile(r"(\.lora_(?:embedding_[AB]\b|[AB]\b))\.(?!weight$)([^.]+)")


@dataclass(frozen=True)
class SavedUpdate:
    """The change of each trained tensor of a checkpoint since θ₀.

    Attributes:
        changes: The changes by parameter name.
        left_out: Tensors that can't be compared, each with the reason.
        tied: Names of tied copies, whose change counts once, under another name.
        holder: The full checkpoint; None for an adapter.
    """

    changes: Mapping[str, Change]
    left_out: Mapping[str, str] = field(default_factory=dict)
    tied: frozenset[str] = frozenset()
    holder: Checkpoint | None = None


def of_weights(now: Checkpoint, start: Source) -> SavedUpdate:
    """Compare a full checkpoint with its base.

    Masks, tables and integer tensors are not weights and are ignored without a warning. A tensor that is missing from a
    snapshot of θ₀ was frozen.

    Raises:
        WeightWatchError: They have no tensor in common, or a tensor has different shapes in them.
    """
    ours, theirs = _weights(now), _weights(start)
    mine, before = copies(now), copies(start)
    tied = {n for n in {*mine, *before} if (n in mine or n not in now) and (n in before or n not in start)}
    changes: dict[str, Change] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys([*now, *start]):
        if name in tied or _BUFFER.search(name) or not (name in ours or name in theirs):
            continue
        if name in ours and name in theirs:
            shape, other = now.shape(name), start.shape(name)
            if shape == other:
                changes[name] = Streamed(shape, partial(now.read, name), partial(start.read, name))
                continue
            advice = "Pass as --reference the checkpoint that training started from."
            left_out[name] = resized(name, other, shape, "the checkpoint", advice)
        elif name in now and name in start:
            kind = now.dtype(name) if name not in ours else start.dtype(name) if isinstance(start, Checkpoint) else "?"
            left_out[name] = f"its element type is {kind} in the checkpoint or in θ₀ (quantised?)"
        elif name in ours and isinstance(start, Checkpoint):
            left_out[name] = f"{start.path} lacks it"
        elif name in theirs:
            left_out[name] = f"{now.path} lacks it"
    if not changes:
        raise WeightWatchError(
            f"{now.path} and its reference have no weight in common: the checkpoint has {_some(ours)}, the reference "
            f"{_some(theirs)}. Pass as --reference the checkpoint that training started from."
        )
    return SavedUpdate(changes, left_out, frozenset(tied), now)


def of_adapter(
    adapter: PeftAdapter,
    starts: Mapping[str, Tensor],
    sources: Callable[[], Sequence[Source]] = tuple,
    opener: Opener = Unmapped,
) -> SavedUpdate:
    """Read a LoRA adapter as an update since its start, or since the copy that TRL saves as the adapter ``ref``.

    Args:
        adapter: The adapter.
        starts: Its parameters at the start of the run, if its change was not zero there; see ``adapters.starts``.
        sources: Returns where θ₀ of tensors beside the factors (``modules_to_save``, biases) is looked up: what the run
            recorded, and the base. Called if there are any.
        opener: Opens its safetensors file.

    Raises:
        WeightWatchError: The tensors are not those of a LoRA adapter, or there are others and θ₀ is unknown.
    """
    tensors = adapter.tensors(opener)
    others = adapter.others(tensors)
    known = sources() if others else ()
    if others and not known:
        raise NotFactorsError(f"{adapter.folder} has {others[0]}, which is not a LoRA factor, and its base is unknown.")
    now = adapter.changes_of(tensors)
    turned = {name for name, change in now.items() if change.transposed}
    before: dict[str, LowRank] = {}
    if is_adapter(adapter.folder / REF):
        ref = PeftAdapter.read(adapter.folder / REF)
        before = ref.changes_of(ref.tensors(opener), turned)
    starts = {name: value for name, value in starts.items() if SCALING not in name}  # the adapter's config has them
    before.update(adapter.changes_of(_of_one(starts, adapter.name), turned))
    changes: dict[str, Change] = {
        name: join(name, [(1.0, change), (-1.0, before[name])]) if name in before else change
        for name, change in now.items()
    }
    if not changes:
        raise WeightWatchError(f"{adapter.folder} has no LoRA factors. Save the adapter again.")
    return SavedUpdate(changes, _add_others(changes, adapter, tensors, known))


def _add_others(
    changes: dict[str, Change],
    adapter: PeftAdapter,
    tensors: Checkpoint,
    sources: Sequence[Source],
) -> dict[str, str]:
    """Add the changes of the tensors beside an adapter's factors, and return those that can't be compared with θ₀."""
    left_out = {}
    for name, key in full_copies.starts(adapter, tensors).items():
        start = next((source for source in sources if key in source), None)
        if start is None:
            if not adapter.saves(name):
                raise NotFactorsError(
                    f"{adapter.folder} has {name}, which is neither a LoRA factor nor a weight of its base."
                )
            left_out[name] = "it is new in this model (a score head?), and its start was not recorded"
            continue
        shape, other = tensors.shape(name), start.shape(key)
        if shape != other:
            left_out[name] = resized(name, other, shape, "the adapter", "Pass as --reference the adapter's base.")
        elif {tensors.dtype(name), start.dtype(key) if isinstance(start, Checkpoint) else "F32"} <= FLOATS:
            changes[name] = Streamed(shape, partial(tensors.read, name), partial(start.read, key))
        else:
            left_out[name] = "it is quantised in the adapter or in θ₀"
    return left_out


def _of_one(starts: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """Return the parameters of one of a run's adapters by their names in the adapter's file."""
    owners = {name: owner for name in starts if (owner := _owner(name))}
    several = len(set(owners.values())) > 1
    return {_without_adapter(n): v for n, v in starts.items() if not several or owners.get(n) == adapter}


def _owner(name: str) -> str | None:
    """Return the adapter that a parameter belongs to."""
    found = _ADAPTER_NAME.search(name)
    return found[2] if found else None


def under_names_of(base: Checkpoint, update: SavedUpdate) -> SavedUpdate:
    """Return the update of an adapter under the parameter names of its model.

    An earlier transformers named the modules of some models otherwise (multimodal ones), and an adapter of that time
    has those names.

    Args:
        base: The base of the adapter, under the parameter names of the model.
        update: The update under the names in the adapter's file.

    Raises:
        WeightWatchError: Two tensors have one name in the model.
    """
    unknown = [name for name in update.changes if name not in base]
    model = architecture(base.path) if unknown else None
    if model is None:
        return update
    changes, left_out = dict(update.changes), dict(update.left_out)
    for name in unknown:
        target, _, converter = model.target(name)
        if name in model.shapes or target not in model.shapes:
            continue
        change = changes.pop(name)
        if converter is not None:
            left_out[name] = f"it is a part of {target} in this model"
        elif changes.setdefault(target, change) is not change:
            raise WeightWatchError(
                f"The adapter changes {target} twice, also as {name}, its name in an earlier transformers. Save it "
                "again."
            )
    return replace(update, changes=changes, left_out=left_out)


class SavedBase:
    """θ₀ on disk, as the weights that a direction's fingerprint is compared with.

    Args:
        sources: Searched in this order for each tensor: θ₀, and for frozen tensors the checkpoint itself.
    """

    def __init__(self, *sources: Source) -> None:
        self._sources = sources

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor; None where its values are quantised.

        Raises:
            KeyError: There is none of that name.
        """
        source, own = self._place(name)
        if isinstance(source, Checkpoint) and source.dtype(own) not in FLOATS:
            return None
        return source.shape(own)

    def values(self, name: str, positions: Tensor) -> Tensor:
        """Return the values at some positions of the flattened tensor, in fp32."""
        source, own = self._place(name)
        return values_at(source, own, positions)

    def _place(self, name: str) -> tuple[Source, str]:
        """Return the source of a tensor, and its name there: of a tied head that is not saved, the embedding's."""
        for source in self._sources:
            if name in source:
                return source, name
        for source in self._sources:
            model = architecture(source.path) if isinstance(source, Checkpoint) else None
            if model is not None and model.tied.get(name) in source:
                return source, model.tied[name]
        raise KeyError(name)


def _weights(source: Source) -> set[str]:
    if isinstance(source, Snapshot):
        return set(source)
    return {name for name in source if source.dtype(name) in FLOATS}


def _without_adapter(name: str) -> str:
    """Return the name that a parameter of an adapter has in the adapter's file."""
    return _ADAPTER_NAME.sub(r"\1", canonical(name))


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:2]) + ", …"
