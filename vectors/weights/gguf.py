"""GGUF files, the models of llama.cpp: not read as they are, but converted to a transformers folder."""

import importlib.util
from pathlib import Path

from weightwatch.vectors.errors import WeightWatchError

_READERS = ("gguf", "sentencepiece")


def convert_gguf(gguf: str | Path, output: str | Path) -> Path:
    """Convert a GGUF model to a transformers folder: weights in bf16, config, tokenizer and chat template.

    Quantised weights are multiplied out, and stay what the quantisation made of them. So the folder is a base of its
    own: a direction that was built on the unquantised model is refused on it, and the other way round.

    Args:
        gguf: The file, of an architecture that transformers reads from GGUF.
        output: A new folder.

    Returns:
        The folder.

    Raises:
        WeightWatchError: There is no such file, the folder exists, the libraries that read GGUF are missing, or
            transformers can't read the file.

    Example:
        >>> from weightwatch.vectors import convert_gguf
        >>> convert_gguf("model.Q4_K_M.gguf", "model")  # doctest: +SKIP
    """
    gguf, output = Path(gguf), Path(output)
    if not gguf.is_file():
        raise WeightWatchError(f"There is no file {gguf} to convert. Check the path.")
    if output.exists():
        raise WeightWatchError(f"{output} exists. Pass a new folder for the converted model.")
    require_readers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except Exception as error:  # of the reader, of an architecture or a tokenizer that transformers does not know
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightWatchError(
            f"transformers can't read {gguf} ({first}). Take the model's safetensors weights from where it was "
            "published, or copy the file again if it is damaged."
        ) from error
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    return output


def require_readers() -> None:
    """Make sure that the libraries that read GGUF are installed.

    Raises:
        WeightWatchError: One is missing.
    """
    missing = [name for name in _READERS if importlib.util.find_spec(name) is None]
    if missing:
        raise WeightWatchError(
            f"A GGUF file can't be read without {' and '.join(missing)}. Run pip install 'weightwatch[smollm2]'."
        )


def refuse_gguf(path: Path) -> None:
    """Refuse a GGUF file, or a folder with nothing but GGUF weights, and say how to convert it.

    Raises:
        WeightWatchError: It is one.
    """
    files = [path] if path.suffix.lower() == ".gguf" else sorted(path.glob("*.gguf")) if path.is_dir() else []
    if not files or any(path.glob("*.safetensors")):
        return
    raise WeightWatchError(
        f"{files[0]} is a GGUF file, which is not read as it is. Convert it and pass the new folder: python -c "
        f"\"from weightwatch.vectors import convert_gguf; convert_gguf({str(files[0])!r}, 'converted')\""
    )
