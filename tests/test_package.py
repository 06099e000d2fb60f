import subprocess
import sys
from pathlib import Path

import pytest

import weightwatch

HEAVY = ("transformers", "trl", "peft", "tensorboard", "matplotlib")
LOADED = "import sys; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"


def loaded_after(statement: str) -> set[str]:
    """Return which of the heavy packages a fresh interpreter holds after a statement."""
    code = f"{statement}\n{LOADED.format(heavy=set(HEAVY))}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_is_quick_and_pulls_in_no_framework() -> None:
    assert loaded_after("import weightwatch") == set()
    assert loaded_after("import transformers") == {"transformers"}  # the probe sees what it should


def test_the_core_names_need_no_trainer() -> None:
    assert loaded_after("from weightwatch import Direction, Monitor, Reading, WeightWatchError") == set()


@pytest.mark.parametrize("name", weightwatch.__all__)
def test_public_names_are_there_and_listed(name: str) -> None:
    assert getattr(weightwatch, name).__name__ == name
    assert name in dir(weightwatch)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Directoin'"):
        weightwatch.Directoin  # noqa: B018


@pytest.mark.parametrize("name", ["vectors", "callbacks"])
def test_a_folder_imported_by_its_short_name_is_refused(name: str) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, cwd=root, check=False
    )
    assert done.returncode == 1
    assert f"ImportError: Import this package as weightwatch.{name}" in done.stderr
