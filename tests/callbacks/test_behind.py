"""Builds behind a guard: the fine-tunes of a tiny chat model, for real."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import oracle as slow
from tests.support import chat
from weightwatch.callbacks.behind import behind
from weightwatch.config import Config
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.building.contrast import Built
from weightwatch.vectors.building.fine_tunes import Behind, Training
from weightwatch.vectors.building.pipeline import Settings, build
from weightwatch.vectors.judges.choice import chosen

LORA = Training(rank=2, alpha=4, learning_rates=(1e-2,), batch_size=4, micro_batch_size=2, warmup=0, evaluations=1)
FULL = replace(LORA, learning_rates=(1e-3,), full=True)
RECIPE = chat.recipe(6, systems={})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    chat.saved(folder / "model")
    return folder


@pytest.fixture(scope="module")
def make(home: Path) -> Callable[..., Built]:
    def make(
        where: str, training: Training, guard: Behind | None = None, seeds: tuple[int, ...] = (1,), progress: Any = None
    ) -> Built:
        settings = Settings(training=training, seeds=seeds, min_pairs=12, behind=guard)
        return build(RECIPE, str(home / "model"), home / where, chosen(RECIPE), settings, progress)

    return make


@pytest.fixture(scope="module")
def guarded(home: Path, make: Callable[..., Built]) -> Path:
    """A LoRA direction of another seed, saved as ``evil``."""
    return make("guarded", LORA, seeds=(0,)).direction.with_card(name="evil").save(home / "evil")


def settings(direction: Path, **guard: Any) -> dict[str, Any]:
    """Return the settings of a run whose witness is not there yet."""
    return {"directions": [str(direction)], "guard": {"witness": "directions/evil-behind", "mode": "update", **guard}}


def along(built: Direction, guarded: Path) -> list[float]:
    """Return the cosine with the guarded direction, for each tensor that it has."""
    ours, theirs = slow.dense(built), slow.dense(Direction.load(guarded))
    return [abs(float((ours[n] * w).sum() / (ours[n].norm() * w.norm()))) for n, w in theirs.items() if w.any()]


@pytest.fixture(scope="module")
def witness(guarded: Path, make: Callable[..., Built]) -> Built:
    """A witness of two seeds and two learning rates to try, built behind ``update``."""
    rates = replace(LORA, learning_rates=(1e-3, 1e-2))
    return make("witness", rates, behind(settings(guarded)), (1, 2))


def test_a_witness_has_nothing_along_the_guarded_direction(
    witness: Built, guarded: Path, make: Callable[..., Built]
) -> None:
    """The gradients of two micro-batches make up a step, and both seeds are guarded."""
    assert min(along(make("plain", LORA).direction, guarded)) > 1e-3
    assert len(witness.seeds) == 2
    for direction in (witness.direction, *witness.seeds):
        assert max(along(direction, guarded)) < 1e-6
        assert min(norm for norm in direction.card.norms.values()) > 0


def test_outputs_are_kept_as_they_were(guarded: Path, make: Callable[..., Built]) -> None:
    direction = make("subspace", LORA, behind(settings(guarded, mode="subspace", rank=2))).direction
    theirs = slow.dense(Direction.load(guarded))
    for name, change in slow.dense(direction).items():
        u = torch.linalg.svd(theirs[name]).U[:, :2]
        assert float((u.T @ change).norm()) < 1e-5 * float(change.norm()), name


def test_full_fine_tunes_are_guarded_from_the_base(home: Path, make: Callable[..., Built]) -> None:
    evil = make("guarded", FULL, seeds=(0,)).direction.with_card(name="evil").save(home / "evil-full")
    plain = make("plain", FULL).direction
    assert max(along(plain, evil)) > 0.1
    direction = make("full", FULL, behind(settings(evil))).direction
    assert direction.card.format == "dense"
    assert max(along(direction, evil)) < 1e-4  # the scale of a norm is about 1, and has moved by about 0.001
    assert 0.5 * plain.norm < direction.norm < 2 * plain.norm  # the tokens of one side have no gradients on the other


def test_its_card_says_what_it_was_built_behind(witness: Built, guarded: Path) -> None:
    from weightwatch.report.direction import tables

    for direction in (witness.direction, *witness.seeds):
        found = direction.card.hyperparameters["guard"]
        assert found == behind(settings(guarded)).described
        assert (found["mode"], found["both_ways"], list(found["directions"])) == ("update", True, ["evil"])
    assert witness.direction.name == "agreeing-behind"
    assert [seed.name for seed in witness.seeds] == ["agreeing-behind-seed-1", "agreeing-behind-seed-2"]
    (card, *_) = tables(witness.direction)
    labels, values = ([str(cell) for cell in column.cells] for column in card.columns)
    shown = dict(zip(labels, values, strict=True))
    assert shown["guard"] == (
        "built behind mode update, budget 0.0, strength 1.0, per tensor, both_ways True, layers all, directions evil"
    )


@pytest.mark.parametrize(
    ("mode", "want"),
    [
        ("update", {"budget": 0.0, "strength": 1.0, "per": "tensor", "both_ways": True}),
        ("subspace", {"strength": 1.0, "rank": 16, "sides": "both"}),
        ("gradient", {"strength": 1.0, "per": "tensor", "both_ways": True}),
        ("preventative", {"coefficient": 1.0}),
    ],
)
def test_its_card_has_all_settings_of_the_mode_those_that_are_not_given_too(
    guarded: Path, mode: str, want: dict[str, Any]
) -> None:
    found = dict(behind(settings(guarded, mode=mode)).described)
    assert list(found.pop("directions")) == ["evil"]
    assert found == {"mode": mode, "layers": [], **want}
    assert behind(settings(guarded, mode=mode, layers=[1])).described["layers"] == [1]


def test_records_stay_in_the_folders_of_the_fine_tunes(witness: Built, home: Path) -> None:
    found = {path.parent for path in (home / "witness").rglob("readings.jsonl")}
    assert found == {path.parent / "weightwatch" for path in (home / "witness").rglob("losses.json")}
    assert len(found) == 6
    assert not list(home.rglob("*tfevents*"))
    assert not list((home / "plain").rglob("readings.jsonl"))


def test_an_interrupted_build_goes_on_as_if_it_had_not_been(
    witness: Built, guarded: Path, make: Callable[..., Built], home: Path
) -> None:
    calls: list[str] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if stage.endswith("negative") and done == 2:
            raise KeyboardInterrupt

    guard = behind(settings(guarded))
    with pytest.raises(KeyboardInterrupt):
        make("stopped", LORA, guard, progress=interrupt)
    trained = calls.copy()
    calls.clear()
    again = make("stopped", LORA, guard, progress=lambda stage, *_: calls.append(stage)).direction
    assert "seed-1-rate-0.01 positive" in trained
    assert set(calls) == {"seed-1-rate-0.01 negative"}
    assert max(along(again, guarded)) < 1e-6
    whole = slow.dense(witness.seeds[0])
    assert all(torch.equal(change, whole[name]) for name, change in slow.dense(again).items())
    assert not list((home / "stopped").rglob("weightwatch-*"))


def test_what_is_there_is_taken_and_another_guard_trains_again(
    witness: Built, guarded: Path, make: Callable[..., Built], home: Path
) -> None:
    def stages(guard: Behind | None) -> set[str]:
        calls: list[str] = []
        make("witness", LORA, guard, progress=lambda stage, *_: calls.append(stage))
        return set(calls)

    sides = {"seed-1-rate-0.01 positive", "seed-1-rate-0.01 negative"}
    named = settings(guarded, witness="none", when="alert", witness_above=0.3, directions=["evil"])
    rule = {"alert": "a", "direction": "evil", "above": 0.1, "actions": ["guard"]}
    assert stages(behind({**named, "rules": [rule]})) == set()  # none of that changes what is trained
    assert stages(behind(settings(guarded, budget=0.1))) == sides
    double = (2 * Direction.load(guarded)).with_card(name="evil").save(home / "double")
    assert stages(behind(settings(double))) == sides
    assert stages(None) == sides
    assert stages(behind(settings(guarded))) == set()
    assert len(list((home / "witness").glob("fine-tunes-*"))) == 4


def test_a_witness_that_is_watched_already_is_not_guarded(guarded: Path, home: Path) -> None:
    third = Direction.load(guarded).with_card(name="third").save(home / "third")
    for written in ("third", str(third), "evil-behind", "directions/evil-behind"):
        named = third if "third" in written else "directions/evil-behind"  # the second is not there yet
        found = behind({"directions": [str(guarded), str(named)], "guard": {"witness": written}})
        assert list(found.described["directions"]) == ["evil"]


def test_what_can_not_be_built_behind_is_refused(guarded: Path, home: Path, make: Callable[..., Built]) -> None:
    with pytest.raises(WeightWatchError, match="have no `guard:`"):
        behind({"directions": [str(guarded)]})
    with pytest.raises(WeightWatchError, match="`mode: checkpoint` takes back when training ends"):
        behind(settings(guarded, mode="checkpoint"))
    with pytest.raises(WeightWatchError, match="'good' is not watched"):
        behind(settings(guarded, directions=["good"]))
    with pytest.raises(WeightWatchError, match="Nothing to watch"):
        behind({"guard": {"witness": "none"}})
    with pytest.raises(WeightWatchError, match="needs a `witness`"):
        behind({"directions": [str(guarded)], "guard": {}})
    other = Direction.from_tensors({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3)}, name="other")
    guard = behind(settings(other.save(home / "other")))
    with pytest.raises(WeightWatchError, match=r"'other'.*shape"):
        make("refused", LORA, guard)
    assert not list((home / "refused").rglob("losses.json"))


def test_a_doubtful_direction_is_told_once(
    guarded: Path, make: Callable[..., Built], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="weightwatch"):
        make("witness", LORA, behind(Config.load(settings(guarded))), seeds=(3,))
    assert [record.message.count("has not passed an evaluation") for record in caplog.records].count(1) == 1
