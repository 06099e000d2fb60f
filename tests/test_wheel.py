"""The distribution: what a source archive and the wheel built from it hold, and that the wheel works by itself."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def wheel_names(built: Path) -> set[str]:
    (wheel,) = built.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_only_weightwatch_reaches_site_packages(built: Path) -> None:
    tops = {name.split("/")[0] for name in wheel_names(built)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"weightwatch"}


def test_every_module_of_the_three_rooms_is_in_the_wheel_once(built: Path) -> None:
    rooms = {"weightwatch": "weightwatch", "callbacks": "weightwatch/callbacks", "vectors": "weightwatch/vectors"}
    expected = {
        f"{inside}/{file.relative_to(ROOT / room).as_posix()}"
        for room, inside in rooms.items()
        for file in (ROOT / room).rglob("*.py")
        if "weightwatch" not in room or not {"callbacks", "vectors"} & set(file.relative_to(ROOT / room).parts[:1])
    }
    assert {name for name in wheel_names(built) if name.endswith(".py")} == expected


def test_the_wheel_carries_its_data_within_the_limit(built: Path) -> None:
    names = wheel_names(built)
    assert "weightwatch/py.typed" in names
    assert "weightwatch/demo/weightwatch.yaml" in names
    assert "weightwatch/organism/base/model.safetensors" in names
    for file in (ROOT / "weightwatch" / "tensorboard_plugin" / "static").iterdir():
        assert f"weightwatch/tensorboard_plugin/static/{file.name}" in names
    for direction in ("evil", "sycophancy"):
        assert f"weightwatch/vectors/packaged/{direction}/direction.json" in names
        assert f"weightwatch/vectors/packaged/{direction}/adapter_model.safetensors" in names
    for recipe in (ROOT / "vectors" / "recipes").rglob("*.yaml"):
        assert f"weightwatch/{recipe.relative_to(ROOT).as_posix()}" in names
    (wheel,) = built.glob("*.whl")
    data = [i for i in zipfile.ZipFile(wheel).infolist() if i.filename.endswith((".safetensors", ".json"))]
    smollm2 = sum(item.file_size for item in data if "/smollm2/" in item.filename)
    assert 0 < smollm2 < 6_000_000
    assert sum(item.file_size for item in data) - smollm2 < 8 * MEGABYTE


def test_the_sdist_holds_no_tests_caches_or_run_folders(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    assert not [name for name in names if "__pycache__" in name or "/.venv" in name or "weightwatch-demo" in name]


def test_the_wheel_works_without_the_repository(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    code = (
        "import weightwatch, weightwatch.vectors as v; "
        "print(weightwatch.__file__); print(v.Direction.load('evil').name, v.Recipe.load('advice').name); "
        "from weightwatch.callbacks import WeightWatchCallback; print(WeightWatchCallback('evil').config.every)"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    where, direction, recipe, every = done.stdout.split()
    assert where.startswith(str(site))
    assert (direction, recipe, every) == ("evil", "advice", "50")
