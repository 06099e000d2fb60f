"""Recording θ₀ at the start of a run, and finding the same θ₀ when the run is resumed.

θ₀ is not copied where it can be read again: under adapters that start at zero it is the base, and a base checkpoint
that equals the model is read from disk. Only the rest is written to the run's folder, beside ``reference.json``:
trained tensors that are in no checkpoint (``reference-*.safetensors``), and adapters such as PiSSA that do not start at
zero (``adapters.safetensors``).
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.update.frozen import FrozenBase
from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.adapters import starts
from weightwatch.update.peft.modules import starts_at_random
from weightwatch.update.reference import Reference, Weights
from weightwatch.update.samples import Digest, value
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.update.snapshot import Snapshot, remove, write
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import write_text
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.names import canonical, indexed
from weightwatch.vectors.weights.reader import Opener, Unmapped, tensors
from weightwatch.vectors.weights.sources import local_folder

NOTE, ADAPTERS = "reference.json", "adapters.safetensors"

_logger = logging.getLogger(__name__)


class Note(BaseModel):
    """The content of ``reference.json``.

    Attributes:
        weights: Where θ₀ of fully trained tensors is: ``checkpoint``, ``snapshot``, ``given`` (``reference=``) or
            ``none``.
        path: The checkpoint.
        adapters: Whether the adapters' parameters at the start are in ``adapters.safetensors``.
        frozen_adapters: The adapters that were active but frozen.
        theta0: Digest of θ₀ of the fully trained tensors.
        base: Digest of the frozen layers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weights: Literal["checkpoint", "snapshot", "given", "none"]
    path: str | None = None
    adapters: bool
    frozen_adapters: tuple[str, ...] = ()
    theta0: Digest | None = None
    base: Digest | None = None


def establish(view: ModelView, folder: Path, given: Reference) -> Reference:
    """Record θ₀ at the start of a run, and in the run's folder where it is read from.

    Each process writes its own part of a snapshot. The first process writes ``reference.json``.

    Args:
        view: The model before its first step.
        folder: The run's weightwatch folder.
        given: The reference that the user passed. Its weights are used as they are.

    Returns:
        The reference.

    Raises:
        WeightWatchError: θ₀ must be copied, and the disk is full.
    """
    ranks, now = view.ranks, view.values
    begun = ranks.agreed(lambda: starts(view.adapters, now))
    full = unrecoverable(view)
    weights, note = given.weights, Note(weights="none" if given.weights is None else "given", adapters=bool(begun))
    if weights is None and full:
        weights, note = None, note.model_copy(update={"weights": "snapshot"})
        checkpoint = ranks.agreed(lambda: _equal_checkpoint(local_folder(view.base_name), full, folder))
        if ranks.all(checkpoint is not None) and checkpoint is not None:
            weights = checkpoint
            note = note.model_copy(update={"weights": "checkpoint", "path": str(checkpoint.path)})
    frozen = ranks.agreed(lambda: FrozenBase.of(view))
    read = value(full) if weights is None else weights.read
    digests = {
        "theta0": Digest.of(_known(weights, full), read, ranks),
        "base": _digest_of_base(view),
        "frozen_adapters": tuple(sorted(frozen.adapters)),
    }
    ranks.from_main(lambda: _write_note(folder, note.model_copy(update=digests), begun))
    if note.weights == "snapshot":
        _logger.warning("weightwatch: No local checkpoint equals the model at its start. θ₀ is copied to %s.", folder)
        ranks.agreed(lambda: write(folder, full, ranks))
        weights = ranks.agreed(lambda: Snapshot(folder))
    return Reference(weights, begun, frozen, taken=True)


def restore(view: ModelView, folder: Path, given: Reference) -> Reference:
    """Return the recorded θ₀ of a run that is resumed.

    Args:
        view: The model with the weights of the checkpoint that training resumes from.
        folder: The run's weightwatch folder.
        given: The reference that the user passed. Its weights take precedence over the recorded ones.

    Raises:
        WeightWatchError: ``reference.json`` is damaged, or names files that no longer exist; θ₀ or the frozen base are
            not those that the run began with; the run was started without weightwatch, and its θ₀ is unknown.
    """
    found = view.ranks.from_main(lambda: _read_note(folder))
    if found is None:
        return view.ranks.agreed(lambda: _unrecorded(view, folder, given))
    note, begun = found
    weights = view.ranks.agreed(lambda: _restored(view, folder, given, note))
    if weights is not None:
        now = Digest.of(_known(weights, unrecoverable(view)), weights.read, view.ranks)
        _require_same(note.theta0, now, f"θ₀ of the trained tensors ({note.path or note.weights})")
    _require_same(note.base, _digest_of_base(view), "The frozen base of the model")
    frozen = replace(view.ranks.agreed(lambda: FrozenBase.of(view)), adapters=frozenset(note.frozen_adapters))
    return Reference(weights, begun, frozen, taken=True)


def _unrecorded(view: ModelView, folder: Path, given: Reference) -> Reference:
    """Return θ₀ of a run that was started without weightwatch, as far as it is known."""
    setting = starts_at_random(view.model.modules())
    setting = f"init_lora_weights={view.changed_by!r}" if view.changed_by is not None else setting
    if setting is not None:
        raise WeightWatchError(
            f"{folder} has no {NOTE}, so the start of the adapter is unknown, and {setting} does not start at zero. "
            "If the run was watched, copy its weightwatch folder there. If not, start a new run."
        )
    base = local_folder(view.base_name) if view.full and given.weights is None else None
    direct = unrecoverable(view)
    if base is not None and (_is_of_training(base) or (direct and _equal_checkpoint(base, direct))):
        raise WeightWatchError(
            f"{folder} has no {NOTE}, and the model was loaded from {base}, which has the weights of the run and not "
            "those that it began with. Pass reference=, the base checkpoint."
        )
    _logger.warning(
        "weightwatch: %s has no %s: the run was started without weightwatch, or its record is elsewhere. The base that "
        "the model names is used as θ₀, and adapters are assumed to have started at zero. If there is a record, copy "
        "its weightwatch folder there and resume again.",
        folder,
        NOTE,
    )
    return Reference(given.weights or (Checkpoint(base) if base else None))


def _restored(view: ModelView, folder: Path, given: Reference, note: Note) -> Weights | None:
    """Return the θ₀ of fully trained tensors that ``reference.json`` names."""
    weights, kind = given.weights, note.weights
    if weights is None and kind == "given":
        raise WeightWatchError(
            "The run was started with an explicit reference=. Pass the same reference= to resume it."
        )
    if weights is None and kind == "snapshot":
        weights = Snapshot(folder)
    if weights is None and kind == "checkpoint":
        path = Path(note.path or "?")
        if not path.exists():
            raise WeightWatchError(f"θ₀ of this run was read from {path}, which no longer exists. Pass reference=.")
        weights = under_names(Checkpoint(path), unrecoverable(view))
    return weights


def _known(weights: Weights | None, full: Mapping[str, LocalTensor]) -> dict[str, LocalTensor]:
    """Return the tensors that can be compared with θ₀."""
    return {n: t for n, t in full.items() if weights is None or (n in weights and weights.shape(n) == t.shape)}


def _digest_of_base(view: ModelView) -> Digest:
    """Return the digest of a model's frozen layers. Collective.

    Quantised weights are not in it, nor what is outside the layers: new rows of a resized vocabulary are drawn anew
    each time that a script starts.
    """
    layers = {n: t for n, t in view.frozen.items() if indexed(n) and n == canonical(n) and t.dtype.is_floating_point}
    return Digest.of(layers, value(layers), view.ranks)


def _require_same(recorded: Digest | None, now: Digest, what: str) -> None:
    """Compare what a resumed run is measured from with what the run began with.

    Raises:
        WeightWatchError: They differ.
    """
    if recorded is None:
        return
    if recorded.tensors != now.tensors:
        _logger.warning(
            "weightwatch: %s has other tensors, or another precision, than when the run began, so it was not compared.",
            what,
        )
    elif recorded.values != now.values:
        raise WeightWatchError(
            f"{what} has other values than when the run began: it was overwritten, or the model was loaded from "
            "another checkpoint. Resume with the weights that the run began from, or start a new run."
        )


def recorded_weights(folder: Path, opener: Opener = Unmapped) -> Snapshot | Checkpoint | None:
    """Return the recorded θ₀ of a run's fully trained tensors; None if none is recorded.

    Args:
        folder: The run's weightwatch folder.
        opener: Opens a safetensors file.

    Raises:
        WeightWatchError: ``reference.json`` is damaged, or names files that no longer exist.
    """
    found = _read_note(folder)
    if found is None or found[0].weights not in ("snapshot", "checkpoint"):
        return None
    if found[0].weights == "snapshot":
        return Snapshot(folder, opener)
    return Checkpoint(found[0].path or "?", opener)


def recorded_adapters(folder: Path) -> dict[str, Tensor]:
    """Return the trained adapters' recorded parameters at the start of a run; see ``adapters.starts``.

    Raises:
        WeightWatchError: ``reference.json`` or ``adapters.safetensors`` is damaged.
    """
    found = _read_note(folder)
    if found is None:
        return {}
    note, begun = found
    return {n: value for n, value in begun.items() if not any(f".{a}." in f"{n}." for a in note.frozen_adapters)}


def unrecoverable(view: ModelView) -> dict[str, LocalTensor]:
    """Return the fully trained tensors whose θ₀ can't be read from the model later, by parameter name.

    They include the copies under ``modules_to_save``. The model contains their originals too, but a copy that is
    trained further did not start there, and the original of a new head is initialised anew when the run is resumed.
    """
    return {} if view.every else view.direct


def _is_of_training(path: Path) -> bool:
    """Whether a folder is a checkpoint that a Trainer wrote."""
    return (path / "trainer_state.json").exists()


def _read_note(folder: Path) -> tuple[Note, dict[str, Tensor]] | None:
    """Return a run's ``reference.json`` and the start of its adapters; None if there is no such file."""
    if not (folder / NOTE).is_file():
        return None
    try:
        note = Note.model_validate_json((folder / NOTE).read_bytes())
        return note, tensors(folder / ADAPTERS) if note.adapters else {}
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False)
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise WeightWatchError(f"{folder / NOTE} is damaged ({reason}). Pass reference=.") from error
    except (OSError, ValueError) as error:
        raise WeightWatchError(f"{folder / ADAPTERS} is damaged ({error}). Start a new run.") from error


def _write_note(folder: Path, note: Note, begun: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder)
    (folder / ADAPTERS).unlink(missing_ok=True)
    if begun:
        save_file({name: tensor.contiguous().cpu() for name, tensor in begun.items()}, folder / ADAPTERS)
    write_text(folder / NOTE, note.model_dump_json(indent=1, exclude_none=True) + "\n")


def _equal_checkpoint(path: Path | None, full: Mapping[str, LocalTensor], run: Path | None = None) -> Checkpoint | None:
    """Return the checkpoint at a path if it contains exactly these tensors, else None.

    A checkpoint of training in the output folder of the run, where they are overwritten and deleted, does not count.
    """
    if path is None or (run is not None and _is_of_training(path) and run.parent.resolve() in path.resolve().parents):
        return None
    try:
        checkpoint = under_names(Checkpoint(path), full)
    except WeightWatchError:
        return None  # pickled or incomplete: θ₀ is copied instead
    for name, local in full.items():
        if name not in checkpoint or checkpoint.shape(name) != local.shape:
            return None
        for piece in local.pieces:
            saved = checkpoint.read(name, piece.box).to(piece.values.device, local.dtype)
            if not torch.equal(saved.to(piece.values.dtype), piece.values):
                return None
    return checkpoint
