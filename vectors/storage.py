"""A direction's folder: its weights, ``direction.json`` and the model card.

A direction of factors is saved as a PEFT adapter, a dense one as ``direction.safetensors`` under the base model's
parameter names.
"""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.vectors.card import CARD, Card
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.model_card import model_card
from weightwatch.vectors.weights.adapter_config import CONFIG, WEIGHTS, is_adapter
from weightwatch.vectors.weights.atomic import write_text
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.peft_adapter import PeftAdapter, write_adapter
from weightwatch.vectors.weights.reader import FLOATS, Opener, Unmapped

DENSE = "direction.safetensors"
"""File of a direction of full tensors."""

PICTURES = ("layers.png", "sweep.png")
"""The pictures beside a direction's weights, which its model card shows."""

FILES = (CARD, CONFIG, WEIGHTS, DENSE, "README.md", *PICTURES)
"""The files of a direction. Nothing else is pushed or downloaded, and no pickles."""

_PNG = b"\x89PNG\r\n\x1a\n"

_NORM_TOLERANCE = 1e-3


def converted(deltas: Mapping[str, Delta], dtype: torch.dtype | None, *, dense: bool) -> dict[str, Delta]:
    """Return tensors in the precision and the format of a file.

    Args:
        deltas: By parameter name.
        dtype: The precision. Default: that of each tensor.
        dense: Whether factors are multiplied out.
    """

    def convert(delta: Delta) -> Delta:
        if isinstance(delta, LowRank) and not dense:
            return delta.to(delta.left.device, dtype or delta.left.dtype)
        tensor = delta.dense() if isinstance(delta, LowRank) else delta
        return tensor.to(dtype or tensor.dtype)

    return {name: convert(delta) for name, delta in deltas.items()}


def write(folder: Path, deltas: Mapping[str, Delta], card: Card) -> None:
    """Write a direction to a folder. Files of the other format that an earlier save left there are removed.

    Args:
        folder: Created if it does not exist.
        deltas: The direction by parameter name: only factors, or only dense tensors.
        card: Its card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        draft = Path(name)
        every = dict(deltas)  # of a direction on disk, each tensor is read once
        low = {name: delta for name, delta in every.items() if isinstance(delta, LowRank)}
        if low:
            write_adapter(draft, low, card.portable().base)
        else:
            # Tensors that share memory are refused, so each is copied.
            tensors = {
                n: t.clone(memory_format=torch.contiguous_format) for n, t in every.items() if isinstance(t, Tensor)
            }
            save_file(tensors, draft / DENSE)
        written = {file.name for file in draft.iterdir()}
        for file in {CONFIG, WEIGHTS, DENSE} - written:
            (folder / file).unlink(missing_ok=True)
        for file in written:
            (draft / file).replace(folder / file)
    write_card(folder, card)


def write_card(folder: Path, card: Card) -> None:
    """Write ``direction.json`` and the model card, which shows the pictures in the folder.

    Of a path in the card, such as the base's, the last part is written; see ``Card.portable``.
    """
    written = card.portable()
    write_text(folder / "README.md", model_card(written, [picture.name for picture in pictures(folder)]))
    write_text(folder / CARD, written.model_dump_json(indent=1) + "\n")


def pictures(folder: Path) -> list[Path]:
    """Return a direction's pictures. A link is none, unless it leads into the Hub's cache that the folder is in."""
    cached = folder.resolve().parent.parent / "blobs"
    found = (folder / name for name in PICTURES)
    return [path for path in found if path.is_file() and (not path.is_symlink() or path.resolve().parent == cached)]


def is_picture(path: Path) -> bool:
    """Whether a file is one of a direction's pictures, and is a PNG."""
    if path not in pictures(path.parent):
        return False
    with path.open("rb") as file:
        return file.read(len(_PNG)) == _PNG


def read(folder: Path, opener: Opener | None = None) -> tuple[Mapping[str, Delta], Card]:
    """Read a direction's tensors and card from its folder.

    Args:
        folder: The folder.
        opener: How its file is opened. If given, a dense direction stays on disk. Default: it is read into memory.

    Raises:
        WeightWatchError: A file is missing or damaged.
    """
    try:
        card = Card.model_validate_json((folder / CARD).read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"])
        raise WeightWatchError(
            f"{folder / CARD} is not a direction's card ({where}: {first['msg']}). Save or copy it again."
        ) from error
    if is_adapter(folder):
        return PeftAdapter.read(folder).changes(opener or Unmapped), card
    dense = Checkpoint(folder / DENSE, opener or Unmapped)
    quantised = next((name for name in dense if dense.dtype(name) not in FLOATS), None)
    if quantised is not None:
        raise WeightWatchError(
            f"{dense.path} has {quantised} with the element type {dense.dtype(quantised)}. A direction has "
            "floating-point values: build or copy it again."
        )
    return dense if opener is not None else dict(dense), card


def require_norms(folder: Path, card: Card, squares: Mapping[str, float]) -> None:
    """Make sure that the norms of a direction's tensors are those that its card states, within 0.1 %.

    Args:
        folder: Its folder, for the message.
        card: The card in the folder.
        squares: ‖w‖² of the tensors in the folder, by parameter name.

    Raises:
        WeightWatchError: They are not: the weights are corrupt.
    """
    whole = sum(squares.values()) ** 0.5
    for name in sorted({*card.norms, *squares}):
        stated, found = card.norms.get(name, 0.0), squares.get(name, 0.0) ** 0.5
        if not (isfinite(stated) and abs(found - stated) <= _NORM_TOLERANCE * max(stated, whole * 1e-3)):
            raise WeightWatchError(
                f"{folder} is corrupt: {name} has norm {found:.6g} where {CARD} states {stated:.6g}. Copy it again."
            )
