"""The base model of a build, and what identifies it."""

import hashlib
from dataclasses import dataclass

from weightwatch.vectors.building.digest import digest
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.weights.adapter_config import is_adapter
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.sources import model_folder

_TEXTS = {".json", ".jinja", ".model", ".txt"}
"""Suffixes of the files with a model's configuration, tokenizer and chat template."""


@dataclass(frozen=True)
class BaseModel:
    """A base model.

    Attributes:
        name: Its name in cards.
        path: Its folder.
        identity: Digest of its sampled weights and of its text files: another chat template, or another generation
            config, gives other answers.
    """

    name: str
    path: str
    identity: str

    @classmethod
    def find(cls, model: str, name: str) -> "BaseModel":
        """Find a base model, downloading it if necessary.

        Args:
            model: A folder, or a Hub id.
            name: Its name in cards.

        Raises:
            WeightWatchError: There is no such model, or it is an adapter.
        """
        folder = model_folder(model)
        if is_adapter(folder):
            raise WeightWatchError(
                f"{model} is an adapter. Pass its base model, or the two adapters of a contrast as --positive and "
                "--negative."
            )
        weights = Checkpoint(folder)
        fingerprint = Fingerprint.of(weights, weights.__getitem__).model_dump_json()
        files = sorted(path for path in folder.iterdir() if path.suffix in _TEXTS)
        texts = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return cls(name, str(folder), digest([fingerprint, texts], length=64))
