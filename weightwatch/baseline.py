"""Fixing θ₀ when a run begins, and finding the same θ₀ again when it is resumed.

θ₀ is not copied where it can be had again: adapters that start at zero leave it in the base, and a base checkpoint that
equals the model is read from disk. Only what is left (trained tensors that no checkpoint holds, adapters such as
PiSSA that do not start at zero) is written to ``reference.safetensors``, beside ``reference.json``, which says so.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weightwatch.peft_layers import moved_copies, start_factors
from weightwatch.reference import Reference, Weights
from weightwatch.update import Difference, base_name, full_parameters
from weightwatch.vectors.checkpoint import Checkpoint, local_folder
from weightwatch.vectors.delta import LowRank
from weightwatch.vectors.errors import WeightWatchError

NOTE, TENSORS = "reference.json", "reference.safetensors"

_logger = logging.getLogger(__name__)


def establish(model: nn.Module, folder: Path, given: Reference, *, main: bool = True) -> Reference:
    """Fix θ₀ as the model is now, and note in the run's folder how to find it again.

    Args:
        model: The model before its first step.
        folder: The run's weightwatch folder.
        given: A reference that the user named; its weights are taken at their word.
        main: This process writes the files. All processes read them.

    Returns:
        The reference.

    Raises:
        WeightWatchError: θ₀ has to be copied and the disk has no room for it.
    """
    full, factors = {**full_parameters(model), **moved_copies(model)}, start_factors(model)
    weights, note = given.weights, {"weights": "given" if given.weights is not None else "none"}
    if weights is None and full:
        weights, note = _equal_checkpoint(local_folder(base_name(model)), full), {"weights": "snapshot"}
        if weights is not None:
            note = {"weights": "checkpoint", "path": str(weights.path)}
    snapshot = full if note["weights"] == "snapshot" else {}
    try:
        if main:
            _write(folder, note, snapshot, factors)
    finally:
        wait_for_all()
    return Reference(Checkpoint(folder / TENSORS) if snapshot else weights, factors)


def restore(model: nn.Module, folder: Path, given: Reference) -> Reference:
    """Find the θ₀ of a run that is resumed.

    Args:
        model: The model with the weights of the checkpoint that training resumes from.
        folder: The run's weightwatch folder.
        given: A reference that the user named; its weights go before what the folder says.

    Raises:
        WeightWatchError: The folder's notes are damaged, or point to files that are gone.
    """
    if not (folder / NOTE).is_file():
        _logger.warning(
            "weightwatch: %s has no %s, since the run was started without weightwatch. θ₀ is taken to be the base that "
            "the model names, and adapters to have started at zero.",
            folder,
            NOTE,
        )
        base = local_folder(base_name(model)) if full_parameters(model) else None
        return Reference(given.weights or (Checkpoint(base) if base else None))
    try:
        note = json.loads((folder / NOTE).read_text())
        kind, factors = note["weights"], note["factors"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightWatchError(f"{folder / NOTE} is damaged ({error}). Pass reference= to go on.") from error
    stored = Checkpoint(folder / TENSORS) if kind == "snapshot" or factors else {}
    weights: Weights | None = given.weights
    if weights is None and kind == "given":
        raise WeightWatchError(
            "The run was started with a reference of its own; pass the same reference= to resume it."
        )
    if weights is None and kind != "none":
        path = folder / TENSORS if kind == "snapshot" else Path(note.get("path", "?"))
        if not path.exists():
            raise WeightWatchError(f"θ₀ of this run was read from {path}, which is gone. Pass reference= to go on.")
        weights = Checkpoint(path)
    return Reference(
        weights,
        {name: LowRank(stored[f"{name}::left"], stored[f"{name}::right"], **form) for name, form in factors.items()},
    )


def _write(folder: Path, note: Mapping[str, Any], full: Mapping[str, Tensor], factors: Mapping[str, LowRank]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous().cpu() for name, parameter in full.items()}
    for name, change in factors.items():
        tensors.update({f"{name}::left": change.left.cpu(), f"{name}::right": change.right.cpu()})
    if tensors:
        _save(tensors, folder / TENSORS)
    forms = {name: {"transposed": c.transposed, "limited": c.limited} for name, c in factors.items()}
    (folder / NOTE).write_text(json.dumps({**note, "factors": forms}, indent=1) + "\n")


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors, all or nothing, if the disk has room for them and as much again."""
    size, free = sum(t.numel() * t.element_size() for t in tensors.values()), shutil.disk_usage(path.parent).free
    if free < 2 * size:
        raise WeightWatchError(
            f"θ₀ of what is trained is in no checkpoint here, and a copy of it ({size / 1e9:.1f} GB) does not fit on "
            f"the disk of {path.parent} ({free / 1e9:.1f} GB free). Pass reference=, the base checkpoint's folder."
        )
    _logger.warning("weightwatch: θ₀ is in no checkpoint here; copying %.3g GB of it to %s.", size / 1e9, path)
    draft = path.with_suffix(".part")
    try:
        save_file(dict(tensors), draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _equal_checkpoint(path: Path | None, full: Mapping[str, Tensor]) -> Checkpoint | None:
    """Return the checkpoint at a path if it holds exactly these tensors, else None."""
    if path is None:
        return None
    try:
        checkpoint = Checkpoint(path)
    except WeightWatchError:
        return None  # pickled or incomplete: a snapshot serves instead
    for name, parameter in full.items():
        if name not in checkpoint or checkpoint.shape(name) != tuple(parameter.shape):
            return None
        with torch.no_grad():
            change = Difference(parameter, lambda first, last, name=name: checkpoint.rows(name, first, last))  # type: ignore[misc]
            if any(bool(block.any()) for _, block in change.blocks()):
                return None
    return checkpoint


def wait_for_all() -> None:
    """Wait until every process of a distributed training is here; one that failed on its way comes too."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
