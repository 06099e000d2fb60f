"""The house: imports point one way, nothing goes round in a circle, and each module has its tests.

Imports are read out of the syntax trees, those within functions and under ``TYPE_CHECKING`` included.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"vectors": "weightwatch.vectors", "callbacks": "weightwatch.callbacks", "weightwatch": "weightwatch"}
FLOORS = {"vectors": 0, "callbacks": 2, "demo": 3, "cli": 3}
"""Which floor a folder is on; all others of weightwatch are the core, on floor 1. Imports never point up."""
HEAVY = {"transformers", "trl", "peft", "datasets", "tensorboard", "matplotlib"}
FACES = {"weightwatch", "weightwatch.__main__"}
"""What only hands names on, lazily."""


def modules() -> dict[str, Path]:
    """Return all modules of the package by their full names."""
    found = {}
    for room, package in ROOMS.items():
        for file in sorted((ROOT / room).rglob("*.py")):
            inside = file.relative_to(ROOT / room)
            if room == "weightwatch" and inside.parts[0] in ("vectors", "callbacks"):
                continue  # links to the other rooms
            name = ".".join([package, *inside.with_suffix("").parts]).removesuffix(".__init__")
            found[name] = file
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """Return which modules of the package a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {other for other in found if other in MODULES and other != name}


IMPORTS = {name: imported(name) for name in MODULES if name not in FACES}


def table() -> dict[str, set[str]]:
    """Return the table in CONTRIBUTING.md: what each folder or module may import, by its path or by its name."""
    found = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if len(cells) == 5 and (key := re.search(r"`([\w/]+?)/?(?:\.py)?`", cells[1])):
            name = key[1].removeprefix("weightwatch/").replace("/", ".")
            found[f"weightwatch.{name}"] = set(re.findall(r"`(\w+)/?`", cells[3])) - {"__init__"}
    return found


ALLOWED = table()


def row(name: str) -> str:
    """Return the row of a module: the nearest folder that has one."""
    nearest = name
    while nearest not in ALLOWED:
        nearest = nearest.rpartition(".")[0]
        assert nearest, f"the table in CONTRIBUTING.md has no row for {name}"
    return nearest


def folder(name: str) -> str:
    """Return the part of the house that a module belongs to: a folder, or a module at the core's top."""
    return name.removeprefix("weightwatch.").split(".")[0]


def floor(name: str) -> int:
    return FLOORS.get(folder(name), 1)


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_point_one_way() -> None:
    up = [(name, other) for name, others in IMPORTS.items() for other in others if floor(other) > floor(name)]
    assert up == []
    beside = [
        (name, other)
        for name, others in IMPORTS.items()
        for other in others
        if floor(name) == floor(other) == 3 and {folder(name), folder(other)} == {"cli", "demo"}
    ]
    assert {name for name, _ in beside} <= {"weightwatch.cli.demo"}  # the command that runs the demo


def test_each_folder_imports_only_what_the_table_in_contributing_names() -> None:
    others = {
        (row(name), other)
        for name, found in IMPORTS.items()
        for other in found
        if row(other) != row(name) and not ALLOWED[row(name)] & set(other.split("."))
    }
    assert others == set()


def test_heavy_libraries_are_imported_at_the_top_only_where_they_are_needed_in_any_case() -> None:
    heavy = set()
    for name, file in MODULES.items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(HEAVY & set(each.split(".")) for each in names if not each.startswith("weightwatch")):
                heavy.add(folder(name))
    assert heavy <= {"callbacks", "demo", "tensorboard_plugin"}


def test_what_is_loaded_by_its_config_says_whether_its_code_is_trusted() -> None:
    """transformers asks on the terminal otherwise. The organism and the demo load what comes with the package."""
    calls = (
        (name, ast.unparse(node))
        for name, file in MODULES.items()
        if folder(name) not in ("organism", "demo")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and re.search(r"\bAuto\w+\.from_pretrained$", ast.unparse(node.func))
    )
    assert [call for call in calls if "trust_remote_code=" not in call[1]] == []


def test_the_core_is_reached_from_everywhere_above_it_and_from_nowhere_below() -> None:
    assert any(floor(other) == 1 for other in IMPORTS["weightwatch.callbacks.trainer"])
    assert all(floor(other) == 0 for name, others in IMPORTS.items() if floor(name) == 0 for other in others)


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circle(IMPORTS) == []


def test_no_folder_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for name, others in IMPORTS.items():
        graph.setdefault(folder(name), set()).update({folder(other) for other in others} - {folder(name)})
    assert circle(graph) == []


def test_a_circle_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


def mirrored(name: str) -> Path:
    """Return where the tests of a module are."""
    *folders, last = name.removeprefix("weightwatch.").split(".")
    return ROOT.joinpath("tests", *folders, f"test_{last}.py")


@pytest.mark.parametrize("name", [n for n, file in MODULES.items() if not file.stem.startswith("__")])
def test_every_module_has_its_test_file(name: str) -> None:
    assert mirrored(name).is_file()


FACTORIES = {
    f"torch.{name}"
    for name in ("empty", "zeros", "ones", "full", "tensor", "arange", "linspace", "eye", "rand", "randn", "randint")
}


@pytest.mark.parametrize("name", [name for name in MODULES if folder(name) not in {"organism", "demo", "cli"}])
def test_a_tensor_has_the_precision_and_device_that_the_code_states(name: str) -> None:
    """``torch.set_default_dtype(torch.bfloat16)`` in a training would otherwise round what is measured."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in FACTORIES:
            stated = {keyword.arg for keyword in node.keywords}
            assert {"dtype", "device"} <= stated, f"{name}, line {node.lineno}: state dtype= and device="
