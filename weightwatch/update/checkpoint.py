"""The update τ = θ_t − θ₀ of a checkpoint on disk, in the forms of a live model's update."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from weightwatch.update.change import Change, Streamed
from weightwatch.update.live import resized
from weightwatch.update.peft.lora import REF
from weightwatch.update.reference import values_at
from weightwatch.update.snapshot import Snapshot
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import join
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.peft_adapter import PeftAdapter, is_adapter
from weightwatch.vectors.weights.reader import FLOATS, Opener, Unmapped
from weightwatch.vectors.weights.tied import copies

Source = Checkpoint | Snapshot

# Buffers in old checkpoints: sine tables, causal masks.
_BUFFER = re.compile(r"(?:rotary_emb\.inv_freq|rotary_emb\.(?:cos|sin)_cached|\.attn\.(?:masked_)?bias)$")
# The adapter's name comes after the match. PEFT omits it in an adapter's file.
_ADAPTER_NAME = re.compile(r"(\.lora_(?:embedding_[AB]\b|[AB]\b))\.(?!weight$)[^.]+")


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


def of_adapter(adapter: PeftAdapter, starts: Mapping[str, Tensor], opener: Opener = Unmapped) -> SavedUpdate:
    """Read a LoRA adapter as an update since its start, or since the copy that TRL saves as the adapter ``ref``.

    Args:
        adapter: The adapter.
        starts: Its parameters at the start of the run, if its change was not zero there; see ``adapters.starts``.
        opener: Opens its safetensors file.

    Raises:
        WeightWatchError: The tensors are not those of a LoRA adapter.
    """
    now, before = adapter.changes(opener), {}
    if is_adapter(adapter.folder / REF):
        before = PeftAdapter.read(adapter.folder / REF).changes(opener)
    named = {_without_adapter(name): value for name, value in starts.items()}
    if len(named) < len(starts):  # the run has several adapters; a checkpoint's own folder has the default one
        named = {_without_adapter(name): value for name, value in starts.items() if ".default" in name}
    before.update(adapter.changes_of(named))
    changes: dict[str, Change] = {
        name: join(name, [(1.0, change), (-1.0, before[name])]) if name in before else change
        for name, change in now.items()
    }
    if not changes:
        raise WeightWatchError(f"{adapter.folder} has no LoRA factors. Save the adapter again.")
    return SavedUpdate(changes)


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
        source = self._source(name)
        if isinstance(source, Checkpoint) and source.dtype(name) not in FLOATS:
            return None
        return source.shape(name)

    def values(self, name: str, positions: Tensor) -> Tensor:
        """Return the values at some positions of the flattened tensor, in fp32."""
        return values_at(self._source(name), name, positions)

    def _source(self, name: str) -> Source:
        for source in self._sources:
            if name in source:
                return source
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
