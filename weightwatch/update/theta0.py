"""Recording θ₀ at the start of a run, and finding the same θ₀ when the run is resumed.

θ₀ is not copied where it can be read again: under adapters that start at zero it is the base, and a base checkpoint
that equals the model is read from disk. Only the rest is written to the run's folder, beside ``reference.json``:
trained tensors that are in no checkpoint (``reference-*.safetensors``), and adapters such as PiSSA that do not start at
zero (``adapters.safetensors``).
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.adapters import starts
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.update.snapshot import Snapshot, remove, write
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import write_text
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.reader import Opener, Unmapped, tensors
from weightwatch.vectors.weights.sources import local_folder

NOTE, ADAPTERS = "reference.json", "adapters.safetensors"

_logger = logging.getLogger(__name__)


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
    weights, note = given.weights, {"weights": "given" if given.weights is not None else "none"}
    if weights is None and full:
        weights, note = None, {"weights": "snapshot"}
        checkpoint = ranks.agreed(lambda: _equal_checkpoint(local_folder(view.base_name), full))
        if ranks.all(checkpoint is not None) and checkpoint is not None:
            weights, note = checkpoint, {"weights": "checkpoint", "path": str(checkpoint.path)}
    ranks.from_main(lambda: _write_note(folder, note, begun))
    if note["weights"] == "snapshot":
        _logger.warning("weightwatch: No local checkpoint equals the model at its start. θ₀ is copied to %s.", folder)
        ranks.agreed(lambda: write(folder, full, ranks))
        weights = ranks.agreed(lambda: Snapshot(folder))
    return Reference(weights, begun)


def restore(view: ModelView, folder: Path, given: Reference) -> Reference:
    """Return the recorded θ₀ of a run that is resumed.

    Args:
        view: The model with the weights of the checkpoint that training resumes from.
        folder: The run's weightwatch folder.
        given: The reference that the user passed. Its weights take precedence over the recorded ones.

    Raises:
        WeightWatchError: ``reference.json`` is damaged, or names files that no longer exist.
    """
    found = view.ranks.from_main(lambda: _read_note(folder))
    return view.ranks.agreed(lambda: _restored(view, folder, given, found))


def _restored(
    view: ModelView, folder: Path, given: Reference, found: tuple[dict[str, str], dict[str, Tensor]] | None
) -> Reference:
    """Return the θ₀ that ``reference.json`` names."""
    if found is None:
        _logger.warning(
            "weightwatch: %s has no %s, since the run was started without weightwatch. The base that the model names "
            "is used as θ₀, and adapters are assumed to have started at zero.",
            folder,
            NOTE,
        )
        base = local_folder(view.base_name) if view.full else None
        return Reference(given.weights or (Checkpoint(base) if base else None))
    note, begun = found
    weights, kind = given.weights, note["weights"]
    if weights is None and kind == "given":
        raise WeightWatchError(
            "The run was started with an explicit reference=. Pass the same reference= to resume it."
        )
    if weights is None and kind == "snapshot":
        weights = Snapshot(folder)
    if weights is None and kind == "checkpoint":
        path = Path(note.get("path", "?"))
        if not path.exists():
            raise WeightWatchError(f"θ₀ of this run was read from {path}, which no longer exists. Pass reference=.")
        weights = under_names(Checkpoint(path), unrecoverable(view))
    return Reference(weights, begun)


def recorded_weights(folder: Path, opener: Opener = Unmapped) -> Snapshot | Checkpoint | None:
    """Return the recorded θ₀ of a run's fully trained tensors; None if none is recorded.

    Args:
        folder: The run's weightwatch folder.
        opener: Opens a safetensors file.

    Raises:
        WeightWatchError: ``reference.json`` is damaged, or names files that no longer exist.
    """
    found = _read_note(folder)
    if found is None or found[0]["weights"] not in ("snapshot", "checkpoint"):
        return None
    if found[0]["weights"] == "snapshot":
        return Snapshot(folder, opener)
    return Checkpoint(found[0].get("path", "?"), opener)


def recorded_adapters(folder: Path) -> dict[str, Tensor]:
    """Return the adapters' recorded parameters at the start of a run; see ``adapters.starts``.

    Raises:
        WeightWatchError: ``reference.json`` or ``adapters.safetensors`` is damaged.
    """
    found = _read_note(folder)
    return found[1] if found is not None else {}


def unrecoverable(view: ModelView) -> dict[str, LocalTensor]:
    """Return the fully trained tensors whose θ₀ can't be read from the model later, by parameter name.

    They include the copies under ``modules_to_save``. The model contains their originals too, but a copy that is
    trained further did not start there, and the original of a new head is initialised anew when the run is resumed.
    """
    return {} if view.every else {canonical(key): view.parameters[key] for key in view.full}


def _read_note(folder: Path) -> tuple[dict[str, str], dict[str, Tensor]] | None:
    """Return a run's ``reference.json`` and the start of its adapters; None if there is no such file."""
    if not (folder / NOTE).is_file():
        return None
    try:
        note = json.loads((folder / NOTE).read_text())
        begun = tensors(folder / ADAPTERS) if note["adapters"] else {}
        return {"weights": note["weights"], "path": str(note.get("path", ""))}, begun
    except Exception as error:  # safetensors raises its own, json its own
        raise WeightWatchError(f"{folder / NOTE} is damaged ({error}). Pass reference=.") from error


def _write_note(folder: Path, note: Mapping[str, str], begun: Mapping[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder)
    (folder / ADAPTERS).unlink(missing_ok=True)
    if begun:
        save_file({name: tensor.contiguous().cpu() for name, tensor in begun.items()}, folder / ADAPTERS)
    write_text(folder / NOTE, json.dumps({**note, "adapters": bool(begun)}, indent=1) + "\n")


def _equal_checkpoint(path: Path | None, full: Mapping[str, LocalTensor]) -> Checkpoint | None:
    """Return the checkpoint at a path if it contains exactly these tensors, else None."""
    if path is None:
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
