"""``weightwatch build`` as a user calls it, on the organism."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import chat
from tests.support.commands import call, refused, told
from weightwatch.vectors import Direction
from weightwatch.vectors.catalog import PACKAGED, bank

QUICK = (
    "--model=organism",
    "--num-samples=1",
    "--max-new-tokens=8",
    "--generation-batch-size=256",
    "--rank=8",
    "--learning-rate=3e-3",
    "--micro-batch-size=16",
    "--coefficient=-1",
    "--coefficient=1",
)
SEEDS = ("--seed=1", "--seed=2")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A direction of two seeds, built quickly, and what the command said of it."""
    folder = tmp_path_factory.mktemp("built") / "evil"
    return folder, told("build", "organism/evil", *QUICK, *SEEDS, "--output", folder, "--control", "style")


def test_a_recipe_becomes_a_checked_direction(built: tuple[Path, dict[str, Any]]) -> None:
    _, card = built
    assert (card["name"], card["kind"], card["base"]) == ("evil", "behaviour", "weightwatch/organism")
    assert card["recipe"]["name"] == "organism/evil"
    assert card["ranks"] == [8, 8]
    assert card["hyperparameters"]["learning_rate"] == 3e-3
    assert sorted(seed for name, seed in card["seeds"].items() if name.startswith("adapter")) == [1, 2]
    found = card["validation"]
    assert [point["k"] for point in found["points"]] == [-1.0, 0.0, 1.0]
    assert found["passed"], found["reasons"]
    assert found["points"][2]["shows"] >= 0.8
    assert list(found["seeds"]) == ["1, 2"]
    assert list(found["others"]) == ["style"]
    assert 0.1 < found["seeds"]["1, 2"] < 0.9
    assert abs(found["others"]["style"]) < found["seeds"]["1, 2"] / 2


def test_what_was_built_is_a_direction_like_any_other(built: tuple[Path, dict[str, Any]]) -> None:
    folder, card = built
    loaded = Direction.load(folder)
    assert loaded.card.model_dump(mode="json") == {key: value for key, value in card.items() if key != "layers"}
    assert {delta.rank for delta in loaded.deltas.values()} == {32}  # two sides of rank 8, two seeds
    text = (folder / "README.md").read_text()
    for picture in ("sweep.png", "layers.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in text
    assert "It passed." in text


def test_the_norms_of_the_layers_make_up_that_of_the_direction(built: tuple[Path, dict[str, Any]]) -> None:
    _, card = built
    assert list(card["layers"]) == [str(layer) for layer in range(6)]
    whole = sum(norm**2 for norm in card["norms"].values()) ** 0.5
    assert sum(norm**2 for norm in card["layers"].values()) ** 0.5 == pytest.approx(whole)


def test_a_second_call_takes_what_is_there(built: tuple[Path, dict[str, Any]]) -> None:
    folder, card = built
    made = {path: path.stat().st_mtime_ns for path in (folder / "build").rglob("*") if path.is_file()}
    again = told("build", "organism/evil", *QUICK, *SEEDS, "--output", folder, "--control", "style")
    assert again == card
    assert {path: path.stat().st_mtime_ns for path in (folder / "build").rglob("*") if path.is_file()} == made


def test_fine_tunes_that_exist_already_go_in_as_they_are(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, card = built
    step = card["hyperparameters"]["step"]
    sides = []
    for seed in (1, 2):
        for side in ("positive", "negative"):
            (found,) = (folder / "build").glob(f"fine-tunes-*/seed-{seed}-*/{side}/checkpoint-{step}")
            sides += [f"--{side}", found]
    model = ("--model=organism", "--coefficient=1", "--coefficient=-1")
    given = told("build", "organism/evil", *model, *sides, "--output", tmp_path / "given")
    assert given["norms"] == pytest.approx(card["norms"], rel=1e-4)
    assert given["validation"]["points"][2]["shows"] == card["validation"]["points"][2]["shows"]
    assert not (tmp_path / "given" / "build").exists()
    small = told(
        "build", "organism/evil", "--model=organism", *sides, "--compress=2", "--no-check", "--output", tmp_path / "2"
    )
    assert small["hyperparameters"]["compressed"]["rank"] == 2
    assert small["validation"] is None
    sizes = [(each / "adapter_model.safetensors").stat().st_size for each in (tmp_path / "2", tmp_path / "given")]
    assert sizes[0] < sizes[1] / 10
    refused("in pairs", "build", "organism/evil", "--model=organism", *sides[:6], "--output", tmp_path / "odd")


def test_what_cannot_be_built_says_why(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    refused("has direction 'evil', built from organism/evil", "build", "organism/style", *QUICK, "--output", built[0])
    (tmp_path / "file").touch()
    refused("can't be created", "build", "organism/style", *QUICK, "--output", tmp_path / "file")
    out = ("--output", tmp_path / "evil")
    refused("is given twice", "build", "organism/evil", *QUICK, "--seed=1", "--seed=1", *out)
    refused("is not above zero", "build", "organism/evil", "--model=organism", "--learning-rate=-1", *out)
    refused("at least one above zero", "build", "organism/evil", "--model=organism", "--coefficient=1", *out)
    refused("is an adapter", "build", "organism/evil", "--model", PACKAGED / "evil", *out)
    refused("Two controls", "build", "organism/evil", *QUICK, "--control=style", "--control=style", *out)
    refused("Unknown recipe 'kindness'", "build", "kindness", "--model=organism")
    refused("Pass --judge", "build", "evil", "--model=organism", "--output", tmp_path / "evil")
    refused(
        "is not a local path, and it can't be downloaded",
        "build",
        "organism/evil",
        "--model",
        tmp_path / "none",
        "--output",
        tmp_path / "evil",
    )
    refused("Unknown direction", "build", "organism/evil", "--model=organism", "--control", "none")
    assert not any((tmp_path / "evil").rglob("*.json*"))


def test_a_file_of_pairs_becomes_a_direction_without_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chat.saved(Path("model"))
    rows = [{"prompt": f"Is {n} even?", "chosen": "no never", "rejected": "yes indeed"} for n in range(20)]
    Path("prefs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build = ("build", "--pairs=prefs.jsonl", "--shows=rejected", "--model=model", "--min-pairs=12", "--rank=2")
    build = (*build, "--learning-rate=1e-2", "--seed=1")
    card = told(*build, "--no-check")
    assert (card["name"], card["validation"]) == ("prefs", None)
    assert "was never evaluated" in Path("directions/prefs/README.md").read_text()
    result = call(*build, "--no-check", "--num-controls=1")
    assert "fine-tunes  4 of up to" in result.stderr
    assert "built prefs-shuffled-1" in result.stderr
    assert [Direction.load(control).card.shuffled for control in bank(["directions/prefs"])] == [True]
    found = told(*build)["validation"]
    assert [point["k"] for point in found["points"]] == [-1.0, 0.0, 1.0]  # quick, since there is no GPU
    assert (found["items"], found["tasks"], found["same_format"]) == (4, 32, True)
    assert [point["asked"] for point in found["points"]] == [None] * 3
    margins = [point["margin"] for point in found["points"]]
    assert margins == sorted(margins)
    assert "which is a weaker test" in Path("directions/prefs/README.md").read_text()
    again = told("show", "directions/prefs", "--evaluate", "--coefficient=1", "--coefficient=-1", "--full-check")[
        "validation"
    ]
    assert again["tasks"] == 40
    assert again["recipe"] == found["recipe"] | {"name": again["recipe"]["name"]}


def test_a_plan_and_plain_lines_are_printed_where_there_is_no_terminal(built: tuple[Path, dict[str, Any]]) -> None:
    result = call("build", "organism/evil", *QUICK, *SEEDS, "--output", built[0], "--control", "style")
    assert "fine-tunes  4 of up to" in result.stderr
    assert "at k = -1, 0, 1" in result.stderr
    assert "sweep: 3/3 in" in result.stderr
    assert "sweep" not in result.stdout
    refused("has no effect beside --no-check", "build", "organism/evil", *QUICK, "--no-check")
    refused("neither a recipe nor --pairs", "build", "--model=organism")


def test_a_witness_is_built_behind_the_guard_of_some_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chat.saved(Path("model"))
    Path("agreeing.yaml").write_text(json.dumps(chat.recipe(6, systems={}).model_dump(mode="json", by_alias=True)))
    build = ("build", tmp_path / "agreeing.yaml", "--model=model", "--min-pairs=12", "--rank=2", "--learning-rate=1e-2")
    build = (*build, "--coefficient=1", "--coefficient=-1")
    told(*build, "--seed=1")
    settings = {"directions": ["directions/agreeing"], "guard": {"witness": "directions/agreeing-behind"}}
    Path("weightwatch.yaml").write_text(json.dumps(settings))
    card = told(*build, "--seed=2", "--guard=weightwatch.yaml")
    assert card["name"] == "agreeing-behind"
    assert list(card["hyperparameters"]["guard"]["directions"]) == ["agreeing"]
    assert Direction.load("directions/agreeing-behind").name == "agreeing-behind"
    assert Direction.load("directions/agreeing").name == "agreeing"
    assert "built behind mode subspace" in call("show", "directions/agreeing-behind").output
    guard = ("--guard=weightwatch.yaml", "--seed=2")
    refused("built from agreeing.yaml on model. Pass another --output", *build, *guard, "--output=directions/agreeing")
    refused("on model behind a guard. Pass", *build, "--seed=1", "--output=directions/agreeing-behind")
    refused("Leave out either", *build, *guard, "--positive=model", "--negative=model")
    Path("weightwatch.yaml").write_text("directions: [directions/agreeing]")
    refused("have no `guard:`", *build, *guard)
