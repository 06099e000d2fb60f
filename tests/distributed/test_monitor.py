"""A reading of a sharded model is that of the whole model, on every process."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from tests.distributed.conftest import Pool
from tests.distributed.engines import CASES, Case, base, plain, trained
from tests.support.models import dense, low_rank
from weightwatch import Monitor
from weightwatch.measure.sums import Part
from weightwatch.reading.reading import Reading
from weightwatch.update import snapshot
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.update.theta0 import establish
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint

pytestmark = pytest.mark.distributed


def directions(case: Case) -> list[Direction]:
    """Return one in factors, one of full tensors and a control, each with the fingerprint of the base."""
    model = base(case.engine)
    weights = model.state_dict()
    found = [low_rank(model, 1), dense(model, 2, name="kind"), low_rank(model, 3, name="null", kind="control")]
    for direction in found:
        fingerprint = Fingerprint.of(direction.deltas, weights.__getitem__)
        direction.card = direction.card.model_copy(update={"fingerprint": fingerprint})
    return found


def start(case: Case) -> dict[str, Tensor] | None:
    """Return θ₀, if the model does not contain it."""
    return None if case.adapted else {name: tensor.clone() for name, tensor in base(case.engine).state_dict().items()}


def readings(case: Case, folder: str) -> tuple[list[Reading], dict[str, Tensor]]:
    """Return a process's readings of a trained model, and the whole weights. Runs in the processes."""
    running = trained(case, folder)
    monitor = Monitor(directions(case), reference=start(case))
    found = [monitor.measure(running.model, step=3)]
    # The model can be trained further afterwards, and measured again.
    running.step(torch.randint(0, 47, (2, 9), generator=torch.Generator().manual_seed(7)))
    found.append(monitor.measure(running.model, step=4))
    return found, dict(running.full())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_reading_of_the_parts_is_the_reading_of_the_whole(pool: Pool, case: Case, checkpoint: Path) -> None:
    answers = pool(case.world).run(readings, case, str(checkpoint))
    for found, _ in answers:
        assert [_timeless(reading) for reading in found] == [_timeless(reading) for reading in answers[0][0]]
    (first, last), full = answers[0]
    assert first.update_norm > 0
    assert first.update_norm != last.update_norm

    model = plain(case.engine, case.adapted)
    missing, unexpected = model.load_state_dict(full, strict=False)
    assert (set(missing) - {"lm_head.weight", "base_model.model.lm_head.weight"}, unexpected) == (set(), [])
    before = start(case)
    if before and "bf16" in case.engine:  # the model was loaded in that precision
        before = {name: tensor.bfloat16().float() for name, tensor in before.items()}
    whole = Monitor(directions(case), reference=before).measure(model, step=4)
    assert last.update_norm == pytest.approx(whole.update_norm, rel=1e-6)
    assert last.directions.keys() == whole.directions.keys()
    for name, direction in whole.directions.items():
        _close(asdict(last[name]), asdict(direction), name)


def fault(case: Case, folder: str) -> str:
    """Return the error for a model whose copies of a tensor differ. Runs in the processes."""
    with pytest.raises(WeightWatchError) as found:
        readings(case, folder)
    return str(found.value)


def test_copies_that_have_diverged_are_an_error_on_every_process(pool: Pool, checkpoint: Path) -> None:
    first, second = pool(2).run(fault, Case(2, "fsdp2 diverged copies", False), str(checkpoint))
    assert first == second
    assert "disagree about model.layers.0.input_layernorm.weight" in first


def beginning(folder: str, broken: str, kind: type[Exception]) -> tuple[str, str]:
    """Return the error of a run that can't begin on the second process. Runs in the processes."""
    ranks = Ranks.world()
    model = base("ddp")
    monitor = Monitor(directions(Case(2, "ddp", False)), reference=start(Case(2, "ddp", False)), ranks=ranks)
    places = {"write": (snapshot, "save_file"), "read": (monitor.reference.weights, "shape"), "sums": (Part, "of")}
    with pytest.MonkeyPatch.context() as patch:
        if not ranks.main:
            patch.setattr(*places[broken], Mock(side_effect=kind("out of space")))
        with pytest.raises((OSError, RuntimeError, WeightWatchError)) as found:
            _begin(monitor, model, Path(folder) if broken == "write" else None)
    return type(found.value).__name__, str(found.value)


def _begin(monitor: Monitor, model: torch.nn.Module, folder: Path | None) -> None:
    if folder is not None:
        establish(ModelView(model, Ranks.world()), folder, Reference())
    monitor.validate(monitor.view(model))


@pytest.mark.parametrize("kind", [OSError, WeightWatchError])
@pytest.mark.parametrize("broken", ["write", "read", "sums"])
def test_a_run_that_cannot_begin_on_one_process_begins_on_none(
    pool: Pool, tmp_path: Path, broken: str, kind: type[Exception]
) -> None:
    """The trainer goes on unwatched after an unforeseen fault: one process alone would leave the others waiting."""
    (first, message), second = pool(2).run(beginning, str(tmp_path), broken, kind)
    assert second == (kind.__name__, "out of space")
    assert first == ("WeightWatchError" if kind is WeightWatchError else "RuntimeError")
    assert message.startswith("Another process" if broken == "sums" else "Process 1 can't be measured: out of space")


def moving(folder: str) -> str:
    """Return the error for a reference in the engine's memory, whose masters are measured."""
    running = trained(Case(2, "zero2 bf16", False), folder)
    with pytest.raises(WeightWatchError) as found:
        Monitor(directions(Case(2, "zero2 bf16", False)), reference=running.model.state_dict()).measure(running.model)
    return str(found.value)


def test_a_reference_that_moves_along_is_an_error_also_where_masters_are_measured(pool: Pool, checkpoint: Path) -> None:
    first, second = pool(2).run(moving, str(checkpoint))
    assert first == second
    assert "the model's own memory" in first


def _close(ours: Any, whole: Any, part: str) -> None:
    if isinstance(whole, dict):
        assert ours.keys() == whole.keys(), part
        for key, value in whole.items():
            _close(ours[key], value, f"{part}, {key}")
    else:
        assert ours == (None if whole is None else pytest.approx(whole, rel=1e-5, abs=1e-6)), part


def _timeless(reading: Reading) -> Reading:
    return replace(reading, time="")
