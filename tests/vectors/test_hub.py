"""Pushing to and fetching from a server that speaks the Hub's language, by processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hub import TOKEN, Hub, serving
from tests.support.models import dense, low_rank, tiny_llama
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.hub import push

ID = "org/evil-llama"
PNG = b"\x89PNG\r\n\x1a\n..."
TOLD = """
import sys
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors import find, push
from weightwatch.vectors.catalog import bank
from weightwatch.vectors.storage import pictures
from pathlib import Path
for statement in sys.argv[1:]:
    try:
        print(eval(statement))
    except WeightWatchError as error:
        print("refused:", error)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


class Machine:
    """A machine that is online, with a cache of its own."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        hidden = ("HF_", "HUGGINGFACE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        self.environment = {**kept, "HF_ENDPOINT": address, "HF_HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(self, *expressions: str, token: str | None = TOKEN, **environment: str) -> list[str]:
        """Evaluate expressions in a new process, and return a line for each: its value, or why it was refused."""
        given = {"HF_TOKEN": token} if token else {}
        command = [sys.executable, "-c", TOLD, *expressions]
        environment = {**self.environment, **given, **environment}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home", hub.address)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("direct", [low_rank, dense])
def test_a_direction_that_is_pushed_is_the_one_that_loads_by_its_id(
    direct: Callable[..., Direction], hub: Hub, machine: Machine, tmp_path: Path
) -> None:
    w = str(direct(tiny_llama(), 1).save(tmp_path / "evil"))
    address, norm, own = machine.run(
        f"push(Direction.load({w!r}), {ID!r})", f"Direction.load({ID!r}).norm", f"Direction.load({w!r}).norm"
    )
    assert address.startswith(f"{hub.address}/{ID}/commit/")
    assert norm == own
    repository = hub.repositories[ID]
    assert repository.private
    held, saved = repository.at("main")[1], files(tmp_path / "evil")
    assert held.keys() - {".gitattributes"} == saved.keys()
    assert all(held[name] == saved[name] for name in saved if name.endswith(".safetensors") or name == "README.md")
    asked = len(hub.asked)
    assert machine.run(f"Direction.load({ID!r}).norm", HF_HUB_OFFLINE="1") == [own]
    assert len(hub.asked) == asked


def test_what_is_pushed_again_replaces_all_of_the_former(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    low_rank(tiny_llama(), 1).save(tmp_path / "low")
    dense(tiny_llama(), 2, name="full").save(tmp_path / "full")
    machine.run(*(f"push(Direction.load({str(tmp_path / name)!r}), {ID!r})" for name in ("low", "full")))
    held = hub.repositories[ID].at("main")[1].keys()
    assert held - {".gitattributes"} == {"direction.json", "direction.safetensors", "README.md"}
    first = list(hub.repositories[ID].commits)[1]
    found = machine.run(f"Direction.load({ID!r}).name", f"Direction.load({ID!r}, revision={first!r}).name")
    assert found == ["full", "evil"]


def test_the_controls_of_a_direction_go_up_and_come_down_with_it(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    model = tiny_llama()
    evil = low_rank(model, 1).save(tmp_path / "evil")
    control = low_rank(model, 2, name="c1").save(evil / "controls" / "c1")
    (evil / "controls" / "c1" / "notes.txt").write_text("mine")
    machine.run(f"push(Direction.load({str(evil)!r}), {ID!r}, controls=[Direction.load({str(control)!r})])")
    held = hub.repositories[ID].at("main")[1].keys()
    own = {"README.md", "adapter_config.json", "adapter_model.safetensors", "direction.json"}
    assert {name for name in held if name.startswith("controls")} == {f"controls/c1/{name}" for name in own}
    controls, norm = machine.run(
        f"[Direction.load(path).name for path in bank([{ID!r}])]", f"Direction.load({ID!r}).norm"
    )
    assert controls == "['c1']"
    assert norm == str(Direction.load(evil).norm)


def test_nothing_of_this_machine_goes_up(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    folder, secret = tmp_path / "alice" / "evil", tmp_path / "id_rsa"
    recipe = {"name": str(tmp_path / "alice" / "x.yaml"), "judge": "org/judge at http://10.0.0.5:8000/v1"}
    w = low_rank(tiny_llama(), 1).with_card(base=str(tmp_path / "alice" / "base"), recipe=recipe)
    w.save(folder)
    card = json.loads((folder / "direction.json").read_text())
    (folder / "direction.json").write_text(json.dumps({**card, "base": str(tmp_path / "alice"), "recipe": recipe}))
    secret.write_bytes(PNG)
    (folder / "sweep.png").symlink_to(secret)
    for name in ("layers.png", "mine.png", "notes.txt"):
        (folder / name).write_bytes(PNG)
    load = f"Direction.load({str(folder)!r})"
    machine.run(f"push({load}, {ID!r}, pictures=pictures(Path({str(folder)!r})))")
    held = hub.repositories[ID].at("main")[1]
    files = {"README.md", "direction.json", "adapter_config.json", "adapter_model.safetensors", "layers.png"}
    assert held.keys() - {".gitattributes"} == files
    assert held["layers.png"] == PNG
    for words in (str(tmp_path), "alice/", "10.0.0.5"):
        assert not [name for name, content in held.items() if words.encode() in content], words


@pytest.mark.parametrize("name", ["link", "other.png", "layers.png"])
def test_a_file_that_is_no_picture_of_a_direction_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "other.png").write_bytes(PNG)
    (tmp_path / "layers.png").write_text("PRIVATE KEY")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "sweep.png").symlink_to(tmp_path / "other.png")
    picture = tmp_path / name / "sweep.png" if name == "link" else tmp_path / name
    with pytest.raises(
        WeightWatchError, match=r"is not a picture of a direction: pass PNG files called layers\.png or"
    ):
        push(low_rank(tiny_llama(), 1), ID, pictures=[picture])


def test_nothing_but_a_directions_files_is_fetched(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    held = files(low_rank(tiny_llama(), 1).save(tmp_path / "evil"))
    hub.add(ID, {**held, "adapter_model.bin": b"pickle", "optimizer.pt": b"pickle", "modeling.py": b"import os"})
    assert files(Path(machine.run(f"find({ID!r})")[0])) == held
    assert not [path for path in hub.asked if path.endswith((".bin", ".pt", ".py"))]


def test_a_private_direction_needs_the_token(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    hub.add(ID, files(low_rank(tiny_llama(), 1).save(tmp_path / "evil")), private=True)
    (without,) = machine.run(f"find({ID!r})", token=None)
    (given,) = machine.run(f"find({ID!r})")
    assert "no repository of that id exists, or you have no access to it" in without
    assert files(Path(given)) == hub.repositories[ID].at("main")[1]


def test_faults_are_told_in_one_line_each(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    held = files(low_rank(tiny_llama(), 1).save(tmp_path / "evil"))
    card = json.loads(held["direction.json"])
    card["norms"] = {name: 2 * norm for name, norm in card["norms"].items()}
    hub.add("org/damaged", {**held, "direction.json": json.dumps(card).encode()})
    hub.add("org/model", {"model.safetensors": b""})
    hub.add("org/public", {"README.md": b""})
    hub.add("org/other", {"README.md": b"theirs", "adapter_model.safetensors": b"theirs"}, private=True)
    w = f"Direction.load({str(tmp_path / 'evil')!r})"
    cases = {
        "Direction.load('org/none')": "org/none is not a local path, and it can't be downloaded from",
        "Direction.load('org/model')": "org/model on the Hub has no direction.json",
        "Direction.load('org/model', revision='v9')": "it has no such revision",
        "Direction.load('org/damaged')": "is corrupt",
        f"push({w}, 'org/mine', token='hf_other')": "the Hub answers 403. Run `hf auth login`",
        f"push({w}, 'org/public')": "org/public already exists and is public. Pass private=False (--public)",
        f"push({w}, 'org/other')": "org/other already has README.md and is not a direction. Pass another id",
        f"push({w}, {ID!r}, endpoint='http://127.0.0.1:9')": f"Direction 'evil' can't be pushed to {ID} (",
    }
    told = machine.run(*cases)
    assert len(told) == len(cases)
    for line, message in zip(told, cases.values(), strict=True):
        assert line.startswith("refused: ")
        assert message in line
    assert "org/mine" not in hub.repositories
    assert list(hub.repositories["org/public"].at("main")[1]) == ["README.md"]
    assert set(hub.repositories["org/other"].at("main")[1].values()) == {b"theirs"}


def test_without_a_hub_in_reach_the_reason_is_told(machine: Machine, tmp_path: Path) -> None:
    w = f"Direction.load({str(low_rank(tiny_llama(), 1).save(tmp_path / 'evil'))!r})"
    fetching, pushing = machine.run(f"find({ID!r})", f"push({w}, {ID!r})", HF_HUB_OFFLINE="1")
    assert "it is not in the cache, and the Hub can't be reached" in fetching
    assert "offline mode is on. Unset HF_HUB_OFFLINE" in pushing


@pytest.mark.parametrize("name", ["evil", "../evil", "a/b/c", "org/", "org/..", ""])
def test_a_name_without_the_form_of_an_id_is_refused(name: str) -> None:
    with pytest.raises(WeightWatchError, match="is not a Hub id"):
        push(low_rank(tiny_llama(), 1), name)
