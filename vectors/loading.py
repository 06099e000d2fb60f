"""Loading a base model, to ask it and to steer it."""

from pathlib import Path
from typing import Any

import torch

from weightwatch.vectors.errors import WeightWatchError

_WEIGHTLESS = ["*.bin", "*.pth", "*.gguf", "*.onnx", "original/*"]  # copies of the weights in other formats


def fetched(name: str) -> Path:
    """Return the folder of a model: a path, or a Hub id, of which is downloaded what is not in the cache.

    Raises:
        WeightWatchError: There is neither.
    """
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=_WEIGHTLESS))
    except (OSError, ValueError) as error:
        raise WeightWatchError(
            f"There is no model {name!r}: neither a folder nor one that the Hub gives ({error})."
        ) from error


def load_model(name: str) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer: on a GPU in its own precision, else in fp32.

    Raises:
        WeightWatchError: There is no such model, or it can't be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, on_gpu = fetched(name), torch.cuda.is_available()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if on_gpu else torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise WeightWatchError(f"{name} can't be loaded as a language model with a tokenizer ({error}).") from error
    return model.to("cuda" if on_gpu else "cpu").eval(), tokenizer
