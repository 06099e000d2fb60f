"""Weights on disk: safetensors files, one or sharded, opened once and read slice by slice."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.precision import BLOCK, dot
from weightwatch.vectors.weights.lazy import Lazy
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.reader import Box, Mapped, Opener, boxes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_SINGLE = (SINGLE, ADAPTER, "direction.safetensors")

# Parts of names that PEFT puts into those of a model that it wraps.
_WRAPPED = re.compile(r"(?:^|\.)(?:base_layer|original_module|modules_to_save|lora_[A-Za-z]\w*)(?:\.|$)")


class Checkpoint(Lazy[Tensor]):
    """The tensors of a safetensors file, or of a folder with one file or a sharded set, by parameter name.

    Files stay open (memory-mapped by default), so that reading a slice again costs no more than the bytes of the slice.
    Names are those of the plain model (see ``canonical``).

    Args:
        path: A ``.safetensors`` file, or a folder with ``model.safetensors`` or ``model.safetensors.index.json``.
        opener: How the files are opened.

    Raises:
        WeightWatchError: There are no readable weights; the message names the file.
    """

    def __init__(self, path: str | Path, opener: Opener = Mapped) -> None:
        self.path = Path(path)
        self._files = {}
        self._where: dict[str, tuple[Path, str]] = {}
        for file in _files(self.path):
            handle = _open(file, opener)
            self._files[file] = handle
            _require_plain(file, handle.keys())
            self._where.update({canonical(key): (file, key) for key in handle.keys()})  # noqa: SIM118
        super().__init__(self._where)

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._where[name]
        tensor: Tensor = self._files[file].get_tensor(key)
        return tensor

    @property
    def files(self) -> list[Path]:
        """Its files."""
        return list(self._files)

    @property
    def notes(self) -> dict[str, str]:
        """The metadata in the headers of its files."""
        return {key: value for handle in self._files.values() for key, value in (handle.metadata() or {}).items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        file, key = self._where[name]
        return tuple(self._files[file].get_slice(key).get_shape())

    def dtype(self, name: str) -> str:
        """Return the element type of a tensor as safetensors names it: ``F32``, ``BF16``, ``U8``."""
        file, key = self._where[name]
        return str(self._files[file].get_slice(key).get_dtype())

    def read(self, name: str, box: Box) -> Tensor:
        """Read one box of a tensor, and nothing else of it."""
        file, key = self._where[name]
        handle = self._files[file]
        whole = not box or isinstance(handle, Mapped)
        part: Tensor = (handle.get_tensor(key) if whole else handle.get_slice(key))[box]
        return part

    def square(self, name: str) -> float:
        """Return the squared Frobenius norm of a tensor, which is read block by block."""
        flat = (self.read(name, box).reshape(-1) for box in boxes(self.shape(name), BLOCK))
        return sum(float(dot(part, part)) for part in flat if part.numel())

    def places(self, name: str) -> list[tuple[str, Box]]:
        """Return the tensors in the files that make up a tensor, each with its place in it."""
        return [(name, tuple(slice(0, size) for size in self.shape(name)))]


def _require_plain(file: Path, keys: Iterable[str]) -> None:
    """Refuse the state dict of a model with adapters in it, which does not state their scaling."""
    wrapped = next((key for key in keys if _WRAPPED.search(key)), None)
    if wrapped is not None and file.name != ADAPTER:
        raise WeightWatchError(
            f"{file} has {wrapped}: it is the state dict of a model with adapters, which does not state their scaling. "
            "Save the adapter alone with save_pretrained and pass its folder, or merge it and save the model."
        )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise WeightWatchError(f"No weights at {path}: there is no such file or folder.")
    index = path / INDEX
    if index.is_file() and not (path / SINGLE).is_file():  # an index beside a whole file is stale
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightWatchError(f"{index} is not a safetensors index: {error}. Copy or save it again.") from error
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise WeightWatchError(f"{path} lacks the shard {missing[0]} that its index names. Copy it again.")
        return [path / name for name in names]
    found = [path / name for name in _SINGLE if (path / name).is_file()]
    if not found:
        raise WeightWatchError(
            f"No safetensors weights in {path}: expected model.safetensors or model.safetensors.index.json. "
            "Save the model with save_pretrained (pickled .bin files are not read)."
        )
    return found[:1]


def _open(file: Path, opener: Opener) -> Any:
    try:
        return opener(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightWatchError(f"{file} can't be read as safetensors ({error}). Copy or download it again.") from error
