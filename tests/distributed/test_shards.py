"""The local shards of all processes, put together, are the model as the engine gathers it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.conftest import Pool
from tests.distributed.engines import CASES, Case, plain, trained
from weightwatch.update.model_view import ModelView
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.reader import Box

pytestmark = pytest.mark.distributed

Part = tuple[tuple[Any, ...], list[tuple[Box, Tensor]]]


def parts(case: Case, folder: str) -> tuple[dict[str, Part], dict[str, Tensor]]:
    """Return the local shards of a trained model, and the whole model from the engine. Runs in the processes."""
    running = trained(case, folder)
    found = {
        name: ((part.shape, part.dtype, part.trained, part.sharded), [(p.box, p.values.clone()) for p in part.pieces])
        for name, part in ModelView(running.model).parameters.items()
    }
    assert not any(
        piece.values.requires_grad for part in ModelView(running.model).parameters.values() for piece in part.pieces
    )
    return found, dict(running.full())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_parts_of_all_processes_are_the_whole_model_once(pool: Pool, case: Case, checkpoint: Path) -> None:
    answers = pool(case.world).run(parts, case, str(checkpoint))
    named = dict(plain(case.engine, case.adapted).named_parameters())
    first, full = answers[0]
    for found, _ in answers:
        assert {name: about for name, (about, _) in found.items()} == {n: about for n, (about, _) in first.items()}
    assert first.keys() == named.keys()
    for name, ((shape, dtype, trains, sharded), _) in first.items():
        assert (shape, trains) == (tuple(named[name].shape), named[name].requires_grad), name
        assert dtype == (torch.bfloat16 if "bf16" in case.engine else torch.float32), name
        count, whole = torch.zeros(shape), torch.full(shape, torch.nan)
        for found, _ in answers if sharded else answers[:1]:
            for box, values in found[name][1]:
                count[box] += 1
                whole[box] = values.float()
        assert bool((count == 1).all()), name
        assert torch.equal(whole, full[name].float()), name
    assert any(sharded for (*_, sharded), _ in first.values()) == _spreads(case)
    assert any(not torch.equal(full[name].float(), value) for name, value in named.items()), "nothing was trained"


def _spreads(case: Case) -> bool:
    whole = case.engine == "ddp" or "unsharded" in case.engine
    return not whole and case.engine not in ("zero1", "zero2")  # in fp32 their weights are whole, and their own masters


def refusal(name: str, folder: str) -> str:
    """Return the error for a model that is sharded in an unsupported way. Runs in the processes."""
    import tests.distributed.strange as strange

    model = getattr(strange, name)()
    try:
        ModelView(model)
    except WeightWatchError as error:
        return str(error)
    return "it was read"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half_a_mesh", "spread by a DTensor over 1 of 2 processes"),
        ("pending_sums", "placed as Partial"),
        ("wrong_layout", "shards that do not match its placements"),
        ("without_its_fsdp_module", "Measure the model that FSDP returned"),
        ("without_its_flat_parameter", "Measure the model that FSDP returned"),
        ("fsdp_in_one_process_each", "spread by FSDP over 1 of 2 processes"),
        ("megatron", "split by Megatron"),
        ("round_robin", "round_robin_gradients"),
        ("offloaded_states", "offloaded"),
    ],
)
def test_unsupported_sharding_is_refused_by_name(pool: Pool, name: str, message: str, tmp_path: Path) -> None:
    for answer in pool(2).run(refusal, name, str(tmp_path)):
        assert message in answer
        assert "weight" in answer or "_flat_param" in answer  # the parameter's name
