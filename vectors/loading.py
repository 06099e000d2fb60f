"""Finding the folder of a model."""

from pathlib import Path

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
