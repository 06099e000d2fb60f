"""LoRA adapters on disk: reading a PEFT folder as changes of weights, and writing one."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.adapter_config import CONFIG, PICKLED, WEIGHTS, LoraSettings, NotFactorsError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.header import Header, header_length, written
from weightwatch.vectors.weights.orientation import transposed
from weightwatch.vectors.weights.reader import DTYPES, FLOATS, Opener, Unmapped

_PLAIN = {DTYPES[kind] for kind in FLOATS}
_TRANSPOSED = "weightwatch.transposed"
# In the file's metadata: the modules of which the weight's change is the transpose of the product, as JSON.


@dataclass(frozen=True)
class Factors:
    """The two factors of one module, as PEFT stores them.

    Attributes:
        a: A, shape (r, in).
        b: B, shape (out, r).
        embedding: Whether the module is an embedding, whose weight's change is the transpose of B A.
    """

    a: Tensor
    b: Tensor
    embedding: bool


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter on disk whose change of each weight is ``B A``.

    Attributes:
        folder: A folder that ``PeftModel.save_pretrained`` wrote.
        settings: Its settings.
        model: Its base model, if that is known: it tells which weights are the transpose of a product.
        name: Its name in the model that was trained.
    """

    folder: Path
    settings: LoraSettings
    model: Checkpoint | None = None
    name: str = "default"

    @classmethod
    def read(cls, folder: Path, model: Checkpoint | None = None, name: str = "default") -> "PeftAdapter":
        """Read an adapter's settings, and make sure that its factors are all of its change.

        Raises:
            WeightWatchError: The file is missing or damaged, or the adapter is of a kind whose change is not ``B A``.
        """
        return cls(folder, LoraSettings.read(folder), model, name)

    @property
    def base(self) -> str | None:
        """Path or Hub id of the base model, as the settings name it."""
        return self.settings.base_model_name_or_path

    @property
    def rank(self) -> int:
        """The rank that the settings name."""
        return self.settings.r

    def tensors(self, opener: Opener = Unmapped) -> Checkpoint:
        """Open the adapter's file.

        Raises:
            WeightWatchError: There is none, or it is pickled.
        """
        if (self.folder / PICKLED).is_file() and not (self.folder / WEIGHTS).is_file():
            raise WeightWatchError(pickled(self.folder / PICKLED))
        return Checkpoint(self.folder / WEIGHTS, opener)

    def changes(self, opener: Opener = Unmapped) -> dict[str, LowRank]:
        """Return the changes by parameter name, with the scaling in ``left``.

        rsLoRA, ``rank_pattern`` and ``alpha_pattern`` count as in PEFT.

        Args:
            opener: How the file is opened.

        Raises:
            WeightWatchError: The tensors are not those of a LoRA adapter.
        """
        tensors = self.tensors(opener)
        for other in self.others(tensors)[:1]:
            kept = self.settings.modules_to_save if self.saves(other) else None
            reason = f"It was trained with modules_to_save={kept}, so its change is more than B A. " if kept else ""
            raise NotFactorsError(
                f"{self.folder} has {other}, which is not a LoRA factor. {reason}Merge it into its base and pass the "
                "merged checkpoints."
            )
        return self.changes_of(tensors)

    def others(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Return the names of tensors beside the factors: full copies, biases, the embeddings of a new vocabulary.

        The frozen weight that PEFT saves beside the factors of an embedding or a head is not among them.
        """
        halves = {_module_and_half(name) for name in tensors}
        adapted = {module for module, half in halves if half}
        return [n for n in tensors if not _module_and_half(n)[1] and n.removesuffix(".weight") not in adapted]

    def saves(self, name: str) -> bool:
        """Whether a tensor is of a module of which the adapter keeps a full copy (``modules_to_save``)."""
        return any(f".{module}." in f".{name}" for module in self.settings.modules_to_save or ())

    def changes_of(self, tensors: Mapping[str, Tensor], turned: Collection[str] | None = None) -> dict[str, LowRank]:
        """Return the changes by the factors among some tensors, which are named as in an adapter's file.

        Args:
            tensors: The tensors by name.
            turned: Names of the weights of which the change is the transpose of the product. Default: what the
                tensors' file, the settings and the base tell.

        Raises:
            WeightWatchError: A factor lacks the other one, or they do not fit each other or the settings.
        """
        pairs = self._pairs(tensors)
        turned = self._transposed(tensors, pairs) if turned is None else turned
        ranks, alphas = self.settings.ranks(), self.settings.alphas()
        changes = {}
        for module, pair in pairs.items():
            rank = len(pair.a)
            if ranks.of(module) != rank:
                raise WeightWatchError(
                    f"{self.folder / CONFIG} states rank {ranks.of(module)} for {module} where its tensors have rank "
                    f"{rank}. Save the adapter again."
                )
            scaling = alphas.of(module) / (rank**0.5 if self.settings.use_rslora else rank)
            name = f"{module}.weight"
            changes[name] = LowRank(
                left=pair.b * scaling,
                right=pair.a,
                transposed=name in turned,
                limited="left" if pair.embedding else "right",
            )
        return changes

    def _pairs(self, tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
        halves: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            module, half = _module_and_half(name)
            if half:
                halves.setdefault(module, {})[half] = tensor
        pairs = {}
        for module, pair in halves.items():
            embedding = "embedding_A" in pair or "embedding_B" in pair
            a, b = (pair.get(half) for half in (("embedding_A", "embedding_B") if embedding else ("A", "B")))
            if a is None or b is None or len(pair) > 2:
                reason = "only one of the two" if len(pair) == 1 else "more than two"
                raise WeightWatchError(f"{self.folder} has {reason} LoRA factors of {module}. Save it again.")
            if a.ndim in (3, 4, 5):
                raise NotFactorsError(f"{self.folder}: the LoRA factors of {module} are not matrices (a convolution?).")
            if a.ndim != 2 or b.ndim != 2 or not a.numel() or a.shape[0] != b.shape[1]:
                raise WeightWatchError(
                    f"{self.folder} has LoRA factors of {module} of the shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                    "which have no product. If the run was sharded, gather the weights before they are saved."
                )
            if not {a.dtype, b.dtype} <= _PLAIN:
                raise WeightWatchError(
                    f"{self.folder} has LoRA factors of {module} in {a.dtype} and {b.dtype}. Save them unquantised."
                )
            pairs[module] = Factors(a, b, embedding)
        return pairs

    def _transposed(self, tensors: Mapping[str, Tensor], pairs: Mapping[str, Factors]) -> set[str]:
        """Return the names of the weights of which the change is the transpose of the product."""
        embeddings = {f"{module}.weight" for module, pair in pairs.items() if pair.embedding}
        noted = tensors.notes.get(_TRANSPOSED) if isinstance(tensors, Checkpoint) else None
        if noted is not None:
            try:
                return embeddings.union(f"{module}.weight" for module in json.loads(noted))
            except (ValueError, TypeError) as error:
                raise WeightWatchError(
                    f"{self.folder / WEIGHTS} has damaged metadata ({error}). Save or copy it again."
                ) from error
        products = {f"{m}.weight": (len(p.b), p.a.shape[1]) for m, p in pairs.items() if not p.embedding}
        flag = bool(self.settings.fan_in_fan_out)
        return embeddings | transposed(products, flag, self.model, self.base, str(self.folder))


def pickled(file: Path) -> str:
    """Return why a pickled file is not read, and what to do."""
    return (
        f"{file} is pickled, and pickled files are not read, since they can run code. Load the model and save it with "
        "save_pretrained, which writes safetensors."
    )


def write_adapter(
    folder: Path, changes: Mapping[str, LowRank], base: str | None, task: str | None = "CAUSAL_LM"
) -> None:
    """Write changes as a PEFT adapter of scaling one, which ``PeftModel.from_pretrained`` loads.

    Args:
        folder: An existing folder.
        changes: By parameter name, each ``<module>.weight``.
        base: Id or path of the base model, for the adapter's config.
        task: PEFT's task type of the model.

    Raises:
        WeightWatchError: A change is not that of a module's weight.
    """
    strange = next((name for name in changes if not name.endswith(".weight")), None)
    if strange is not None:
        raise WeightWatchError(
            f"{strange} is not the weight of a module, so PEFT has no factors for it. Multiply it out, with "
            "LowRank.dense(), to save it as a full tensor."
        )
    from peft import LoraConfig

    tensors, ranks = {}, {}
    for name, change in changes.items():
        module = name.removesuffix(".weight")
        prefix = f"base_model.model.{module}"
        ranks[module] = change.rank
        kind = "lora_embedding_{}" if _is_embedding(change) else "lora_{}.weight"
        tensors[f"{prefix}.{kind.format('A')}"] = change.right.contiguous()
        tensors[f"{prefix}.{kind.format('B')}"] = change.left.contiguous()
    most = max(ranks.values(), key=list(ranks.values()).count)
    pattern = {_exactly(module): rank for module, rank in ranks.items() if rank != most}
    config = LoraConfig(
        task_type=task,
        base_model_name_or_path=base,
        inference_mode=True,
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=pattern,
        target_modules=sorted(ranks),
        fan_in_fan_out=any(c.transposed and not _is_embedding(c) for c in changes.values()),
    )
    config.save_pretrained(folder)
    settings = json.loads((folder / CONFIG).read_text())
    settings["target_modules"].sort()  # PEFT's are a set: the same direction would give another file each time
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    turned = sorted(name.removesuffix(".weight") for name, change in changes.items() if change.transposed)
    plain = save(tensors)  # without notes: safetensors writes them in a random order, so that no two files were equal
    header = Header.of(plain[8 : 8 + header_length(plain[:8])])
    entries = [(name, entry.dtype, entry.shape) for name, entry in header.entries.items()]
    with (folder / WEIGHTS).open("wb") as file:
        file.write(written(entries, {"format": "pt", _TRANSPOSED: json.dumps(turned)}))
        file.write(memoryview(plain)[header.first :])


def _module_and_half(name: str) -> tuple[str, str]:
    """Return the module of a factor and which one it is: ``A``, ``B``, ``embedding_A``, ``embedding_B``.

    The second is empty for any other tensor.
    """
    module, _, half = name.removesuffix(".weight").rpartition(".lora_")
    return (module, half) if half in ("A", "B", "embedding_A", "embedding_B") else (name, "")


def _is_embedding(change: LowRank) -> bool:
    """Whether a change is that of an embedding, for which PEFT has other names and another order of factors."""
    return change.transposed and change.limited == "left"


def _exactly(module: str) -> str:
    """Return the pattern of a module's name that matches no longer name that ends with it."""
    return "^" + module.replace(".", r"\.")
