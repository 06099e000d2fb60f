"""Weights on disk: safetensors files, one or sharded, opened once and read slice by slice."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationError
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.precision import BLOCK, dot
from weightwatch.vectors.weights.gguf import refuse_gguf
from weightwatch.vectors.weights.lazy import Lazy
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.reader import Box, Opener, Unmapped, boxes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"
_SINGLE = (SINGLE, ADAPTER, "direction.safetensors")

# Parts of names that PEFT puts into those of a model that it wraps.
_WRAPPED = re.compile(r"(?:^|\.)(?:base_layer|original_module|modules_to_save|lora_[A-Za-z]\w*)(?:\.|$)")


def _inside(name: str) -> str:
    """Return a shard's name, which is that of a file in the folder of its index or below."""
    path = PurePosixPath(name)
    if not path.name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"the shard {name!r} is not a file in its folder")
    return str(path)


class ShardIndex(BaseModel):
    """The index of a sharded checkpoint.

    Attributes:
        weight_map: The file of each tensor: a path relative to the index, by the tensor's name in the file.
    """

    weight_map: dict[str, Annotated[str, AfterValidator(_inside)]]

    @classmethod
    def read(cls, file: Path) -> "ShardIndex":
        """Read and validate an index.

        Raises:
            WeightWatchError: It is damaged, or names a file outside its folder.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            reason = (
                error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else error
            )
            raise WeightWatchError(f"{file} is not a safetensors index: {reason}. Copy or save it again.") from error

    @property
    def shards(self) -> list[str]:
        """The files, each once."""
        return sorted(set(self.weight_map.values()))


class Checkpoint(Lazy[Tensor]):
    """The tensors of a safetensors file, or of a folder with one file or a sharded set, by parameter name.

    Files stay open, and a slice is read when it is asked for. Names are those of the plain model (see ``canonical``).

    Args:
        path: A ``.safetensors`` file, or a folder with ``model.safetensors`` or ``model.safetensors.index.json``.
        opener: How the files are opened.

    Raises:
        WeightWatchError: There are no readable weights, or two tensors have one name; the message names the file.
    """

    def __init__(self, path: str | Path, opener: Opener = Unmapped) -> None:
        self.path = Path(path)
        self._files: dict[Path, Any] = {}
        self._where: dict[str, tuple[Path, str]] = {}
        files, index = _files(self.path)
        for file in files:
            self._files[file] = handle = _open(file, opener)
            _require_plain(file, handle.keys())
            for key in handle.keys():  # noqa: SIM118
                name = canonical(key)
                if name in self._where:
                    other, twin = self._where[name]
                    raise WeightWatchError(
                        f"{self.path} has {name} twice: as {twin} in {other.name} and as {key} in {file.name}. Save "
                        "the model again, so that each weight is there once."
                    )
                self._where[name] = file, key
        for key, shard in index.items():
            if self._where.get(canonical(key)) != (self.path / shard, key):
                raise WeightWatchError(
                    f"{self.path / INDEX} names {key} in {shard}, which does not have it. Copy or save the checkpoint "
                    "again."
                )
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
        part: Tensor = self._files[file].get_slice(key)[box]
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


def _files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the files of a checkpoint, and the shard of each tensor as far as an index names it."""
    if path.is_file():
        refuse_gguf(path)
        return [path], {}
    if not path.is_dir():
        raise WeightWatchError(f"No weights at {path}: there is no such file or folder.")
    if (path / INDEX).is_file() and not (path / SINGLE).is_file():  # an index beside a whole file is stale
        index = ShardIndex.read(path / INDEX)
        missing = [name for name in index.shards if not (path / name).is_file()]
        if missing:
            raise WeightWatchError(f"{path} lacks the shard {missing[0]} that its index names. Copy it again.")
        return [path / name for name in index.shards], index.weight_map
    found = [path / name for name in _SINGLE if (path / name).is_file()]
    if not found:
        refuse_gguf(path)
        raise WeightWatchError(
            f"No safetensors weights in {path}: expected model.safetensors or model.safetensors.index.json. "
            "Save the model with save_pretrained (pickled .bin files are not read)."
        )
    return found[:1], {}


def _open(file: Path, opener: Opener) -> Any:
    try:
        return opener(file)
    except (OSError, ValueError) as error:
        raise WeightWatchError(f"{file} can't be read as safetensors ({error}). Copy or download it again.") from error
