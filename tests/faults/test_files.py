"""Damaged files of a run, an adapter, a base and a direction: measured as if they were whole, or refused.

The run is scanned by the command. Whatever is done to a file, the scan ends with the reading of the undamaged run
(the damage is in a part that nobody reads), with a reading that names what it had to leave out, or with a message.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from peft import PeftModel

from tests import oracle as slow
from tests.faults.damage import Damage, of_json, of_safetensors
from tests.faults.limits import within
from tests.faults.sample import sample
from tests.support.commands import call
from tests.support.models import dense, lora, low_rank, move, tiny_llama
from weightwatch.vectors import WeightWatchError

CONFIG = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "tie_word_embeddings",
    "dtype",
    "architectures",
)
ADAPTER = ("peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "fan_in_fan_out", "rank_pattern",
           "alpha_pattern", "modules_to_save", "base_model_name_or_path", "bias", "init_lora_weights")  # fmt: skip
PLACES: dict[str, tuple[str, Callable[[bytes], Iterator[Damage]]]] = {
    "full/run/checkpoint-3/model.safetensors": ("full", of_safetensors),
    "full/run/checkpoint-3/config.json": ("full", lambda whole: of_json(whole, CONFIG)),
    "full/run/checkpoint-3/trainer_state.json": ("full", of_json),
    "full/base/model.safetensors": ("full", of_safetensors),
    "full/base/config.json": ("full", lambda whole: of_json(whole, CONFIG)),
    "full/dense/direction.safetensors": ("full", of_safetensors),
    "full/dense/direction.json": ("full", of_json),
    "parts/run/checkpoint-3/model.safetensors.index.json": ("parts", of_json),
    "lora/run/checkpoint-3/adapter_model.safetensors": ("lora", of_safetensors),
    "lora/run/checkpoint-3/adapter_config.json": ("lora", lambda whole: of_json(whole, ADAPTER)),
    "lora/factors/adapter_model.safetensors": ("lora", of_safetensors),
    "lora/factors/adapter_config.json": ("lora", lambda whole: of_json(whole, ADAPTER)),
    "lora/factors/direction.json": ("lora", of_json),
}
"""The files that are damaged, each with the run that it is part of."""


def prepare(home: Path) -> None:
    """Make a full run, one in several files and one of adapters, each with its base and direction.

    There are no rules: what is left of a damaged checkpoint may well lie along the direction.
    """
    (home / "settings.yaml").write_text("rules: []")
    for kind in ("full", "parts", "lora"):
        base = tiny_llama()
        base.save_pretrained(home / kind / "base")
        model = lora(base, r=4, lora_alpha=16) if kind == "lora" else tiny_llama()
        move(model, 3)
        checkpoint = home / kind / "run" / "checkpoint-3"
        model.save_pretrained(checkpoint, **({"max_shard_size": "20KB"} if kind == "parts" else {}))
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 3, "max_steps": 5}))
        (low_rank(base, 1) if kind == "lora" else dense(base, 1)).save(
            home / kind / ("factors" if kind == "lora" else "dense")
        )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def whole(home: Path) -> Mapping[str, dict[str, Any]]:
    """The readings of the undamaged runs."""
    return {kind: scanned(home, kind) for kind in ("full", "parts", "lora")}


def scanned(home: Path, kind: str) -> dict[str, Any]:
    """Scan a run and return its only reading; raise what the command ends with."""
    what = [home / kind / "run", "-d", home / kind / ("factors" if kind == "lora" else "dense")]
    what += ["--config", home / "settings.yaml"]
    with within():
        result = call("scan", *what, "--reference", home / kind / "base", "--output", home / "record", "--json")
    shutil.rmtree(home / "record", ignore_errors=True)
    if result.exit_code:
        raise result.exception or AssertionError(result.output)
    (reading,) = json.loads(result.stdout)["readings"]
    return reading


def faults() -> Iterator[tuple[str, tuple[str, str, bytes]]]:
    """Yield each damage to each file."""
    with TemporaryDirectory() as name:
        prepare(Path(name))
        for place, (kind, damages) in PLACES.items():
            for what, damaged in damages((Path(name) / place).read_bytes()):
                yield f"{place} {what}", (place, kind, damaged)


def by_peft(home: Path, place: str) -> float:
    """Return the norm of the change that PEFT itself makes of an adapter: ``lora_alpha: 0.5`` is odd, but no damage."""
    if not place.endswith("run/checkpoint-3/adapter_config.json"):
        return -1.0
    start = slow.merged(tiny_llama())
    now = slow.merged(PeftModel.from_pretrained(tiny_llama(), str(home / place).removesuffix("/adapter_config.json")))
    return float(sum((now[name] - start[name]).square().sum() for name in start)) ** 0.5


def close(one: object, other: object) -> bool:
    """Whether two documents have the same figures."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one if key != "time")
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-6, abs=1e-9)
    return one == other


@pytest.mark.parametrize(("place", "kind", "damaged"), sample(faults(), 3))
def test_a_damaged_file_is_refused_or_does_not_change_the_figures(
    place: str, kind: str, damaged: bytes, home: Path, whole: Mapping[str, dict[str, Any]]
) -> None:
    file = home / place
    kept = file.read_bytes()
    file.write_bytes(damaged)
    try:
        with suppress(WeightWatchError):
            found = scanned(home, kind)
            left_out = set(found["left_out"]) > set(whole[kind]["left_out"])
            assert close(found, whole[kind]) or left_out or found["update_norm"] == pytest.approx(by_peft(home, place))
    finally:
        file.write_bytes(kept)
