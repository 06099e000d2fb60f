from pathlib import Path

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from tests.support.models import tiny_llama
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.sources import fetch, hub_errors, is_hub_id, local_folder, require_local

COMMIT = 40 * "a"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model org/base in the cache of the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--base"
    tiny_llama().save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def test_a_base_is_found_by_path_or_in_the_cache_of_the_hub(cached: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert local_folder(str(tmp_path / "here")) == (tmp_path / "here").resolve()
    assert local_folder("org/base") == cached
    assert local_folder("org/other") is None
    assert local_folder("not a name/at all/") is None
    assert local_folder("") is None
    assert require_local("org/base") == cached
    with pytest.raises(WeightWatchError, match=r"org/other is not a local folder.*: hf download org/other"):
        require_local("org/other")


def test_a_path_wins_and_an_id_is_looked_up_in_the_cache_when_offline(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fetch("org/base") == cached
    assert fetch("org/base", marker="config.json", allow=["*.json"]) == cached
    (tmp_path / "org" / "base").mkdir(parents=True)
    assert fetch("org/base") == Path("org/base")


def test_a_mistyped_path_is_not_looked_for_on_the_hub(
    cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "bases").mkdir(parents=True)
    with pytest.raises(WeightWatchError, match=r"^There is no base in the folder org\. Check the spelling\."):
        fetch("org/base")


def test_what_comes_from_the_hub_is_said(cached: Path, caplog: pytest.LogCaptureFixture) -> None:
    fetch("org/base")
    assert caplog.messages == [
        f"weightwatch: org/base is no local path; it is read from the Hugging Face Hub, in {cached}."
    ]


@pytest.mark.parametrize("marker", [None, "direction.json"])
def test_what_is_neither_a_path_nor_on_the_hub_is_an_error_of_one_line(cached: Path, marker: str | None) -> None:
    with pytest.raises(WeightWatchError, match=r"^org/other is not a local path.*not in the cache.*[^\n]*$"):
        fetch("org/other", marker=marker)
    with pytest.raises(WeightWatchError, match=r"^no/such/thing is not a local path"):
        fetch("no/such/thing", marker=marker)


def test_errors_of_the_hub_say_what_to_do() -> None:
    with (
        pytest.raises(WeightWatchError, match=r"^It failed: offline mode is on\. Unset HF_HUB_OFFLINE\.$"),
        hub_errors("It failed"),
    ):
        raise OfflineModeIsEnabled("offline")
    with (
        pytest.raises(WeightWatchError, match=r"^It failed \(first line\)\. Check the network"),
        hub_errors("It failed"),
    ):
        raise OSError("first line\nsecond line")
    with pytest.raises(WeightWatchError, match=r"^ours$"), hub_errors("It failed"):
        raise WeightWatchError("ours")


@pytest.mark.parametrize(
    ("name", "is_one"), [("org/evil-llama", True), ("evil", False), ("../evil", False), ("", False)]
)
def test_an_id_has_an_organisation_and_a_name(name: str, is_one: bool) -> None:
    assert is_hub_id(name) is is_one
