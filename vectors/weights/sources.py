"""Finding a model, an adapter or a direction by its path or its id on the Hugging Face Hub."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.gguf import refuse_gguf

_logger = logging.getLogger("weightwatch")

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a Hub id, ``org/name``.

    Example:
        >>> is_hub_id("org/evil-llama"), is_hub_id("evil"), is_hub_id("../evil"), is_hub_id("runs/evil/last")
        (True, False, False, False)
    """
    return _ID.fullmatch(name) is not None


def local_folder(name: str) -> Path | None:
    """Return the folder of a model on this machine; None if there is none. Nothing is downloaded.

    Args:
        name: A path, or the Hub id of a model in the cache: what a model's or an adapter's config names as its base.
    """
    from huggingface_hub import snapshot_download

    if not name:
        return None
    if Path(name).is_dir():
        return Path(name).resolve()
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None


def require_local(name: str) -> Path:
    """Return the folder of a model on this machine; see ``local_folder``.

    Raises:
        WeightWatchError: There is none, or it is a GGUF file.
    """
    refuse_gguf(Path(name))
    folder = local_folder(name)
    if folder is None:
        raise WeightWatchError(
            f"{name} is not a local folder, nor a model in the Hub's cache. Download it first: hf download {name}"
        )
    return folder


def fetch(
    name: str,
    *,
    allow: list[str] | None = None,
    ignore: list[str] | None = None,
    revision: str | None = None,
    marker: str | None = None,
) -> Path:
    """Return a local path as it is, or the folder of a repository on the Hub, downloaded if it is not in the cache.

    In offline mode, a repository is only looked up in the cache. A name whose first part is a folder here is a path
    and no Hub id: a mistyped path must not become a stranger's repository. What comes from the Hub is logged.

    Args:
        name: A path, or a Hub id.
        allow: Patterns of the files to download. Default: all.
        ignore: Patterns of files not to download.
        revision: Branch, tag or commit. Default: the main branch.
        marker: A file that the repository must have. It is downloaded first, and the rest from the same commit.

    Raises:
        WeightWatchError: There is no such path or repository, it lacks the marker, or it can't be downloaded.
    """
    if Path(name).exists():
        return Path(name)
    if is_hub_id(name) and (folder := Path(name).parent).is_dir():
        raise WeightWatchError(
            f"There is no {Path(name).name} in the folder {folder}. Check the spelling. If you mean {name} on the "
            f"Hugging Face Hub, run weightwatch where there is no folder {folder}."
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    with hub_errors(f"{name} is not a local path, and it can't be downloaded from the Hugging Face Hub"):
        if marker is not None:
            try:
                revision = Path(hf_hub_download(name, marker, revision=revision)).parent.name
            except LocalEntryNotFoundError:
                raise
            except RemoteEntryNotFoundError as error:
                raise WeightWatchError(f"{name} on the Hub has no {marker}. Check the id.") from error
        found = Path(snapshot_download(name, revision=revision, allow_patterns=allow, ignore_patterns=ignore))
    _logger.warning("weightwatch: %s is no local path; it is read from the Hugging Face Hub, in %s.", name, found)
    return found


def model_folder(name: str) -> Path:
    """Return the folder of a model to load, downloaded without copies of its weights in other formats.

    Raises:
        WeightWatchError: It is a GGUF file; or see ``fetch``.
    """
    refuse_gguf(Path(name))
    return fetch(name, ignore=["*.bin", "*.pth", "*.gguf", "*.onnx", "original/*"]).resolve()


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn the errors of the Hub and of the network inside a ``with`` block into a ``WeightWatchError`` of one line.

    Args:
        what: The beginning of the message: what could not be done.
    """
    from huggingface_hub import errors

    # In this order: a gated repository also counts as one that is not found.
    reasons = (
        (errors.OfflineModeIsEnabled, "offline mode is on. Unset HF_HUB_OFFLINE"),
        (errors.RevisionNotFoundError, "it has no such revision. Look up its revisions on its page"),
        (errors.GatedRepoError, "it is gated. Ask for access on its page, then run `hf auth login`"),
        (
            errors.RepositoryNotFoundError,
            "no repository of that id exists, or you have no access to it. Check the spelling; for a private one, run "
            "`hf auth login`",
        ),
        (
            errors.LocalEntryNotFoundError,
            "it is not in the cache, and the Hub can't be reached. Check the network, or unset HF_HUB_OFFLINE",
        ),
    )
    try:
        yield
    except WeightWatchError:
        raise
    except Exception as error:  # of the Hub's own, of the network's library, of the system
        reason = next((reason for kind, reason in reasons if isinstance(error, kind)), None)
        if reason is None and isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            advice = "Run `hf auth login` with a token that may write" if status in (401, 403) else "Try again later"
            reason = f"the Hub answers {status}. {advice}"
        if reason is not None:
            raise WeightWatchError(f"{what}: {reason}.") from error
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightWatchError(f"{what} ({first}). Check the network and the spelling.") from error
