"""A direction of which next to nothing lies in what is trained is refused, and the check reads no θ₀."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import oracle as slow
from tests.guard.test_find import refused
from tests.guard.test_parts import CASES, moved, of_kind, started, untied
from tests.support.guards import begun
from tests.support.models import lora, low_rank
from weightwatch.guard import reach as reaches
from weightwatch.guard.reach import require_reach
from weightwatch.guard.trained import Trained
from weightwatch.guard.weight import Direct
from weightwatch.update.reference import StateDict
from weightwatch.vectors import Direction, WeightWatchError


@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint"])
def test_a_direction_that_lies_elsewhere_is_refused(mode: str) -> None:
    evil = low_rank(untied(), 5)
    far = {n: replace(d, left=d.left * (1e-4 if "q_proj" in n else 1)) for n, d in evil.deltas.items()}
    message = (
        r"^Direction 'far' has a reach of [0-9.e-]+ in the guarded weights.* Guard the layers it was built on, or tr"
    )
    direction = Direction.from_tensors(far, name="far")
    refused(lambda: lora(untied(), target_modules=["q_proj"]), message, direction, mode=mode)


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA on Conv1D", "LoRA on embeddings", "LoRA with B frozen"])
def test_the_reach_is_the_norm_of_what_the_trained_weights_can_express(
    case: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, build, _ = CASES[case]
    model, evil = moved(build()), of_kind(kind, base(), 5)  # the oracle sees no space where the product is zero
    w, spaces = slow.dense(evil), slow.spaces(model)
    seen = {name: spaces[name].project(each) if spaces else each for name, each in w.items() if name in (spaces or w)}
    within = sum(float(each.square().sum()) for each in seen.values())
    want = (within / sum(float(each.square().sum()) for each in w.values())) ** 0.5
    monkeypatch.setattr(reaches, "NOTHING", want * (1 - 1e-5))
    begun(model, [evil], starts="LoRA" in case)
    monkeypatch.setattr(reaches, "NOTHING", want * (1 + 1e-5))
    with pytest.raises(WeightWatchError, match=f"has a reach of {want:.2g} in"):
        begun(model, [evil], starts="LoRA" in case)


def test_of_weights_themselves_nothing_is_read() -> None:
    def start(box: Any) -> torch.Tensor:
        raise AssertionError("θ₀ was read")

    trained = Trained(torch.nn.Parameter(torch.ones(1, 2)))
    evil = Direction.from_tensors({"a": torch.ones(1, 2), "b": torch.ones(1, 2)}, name="evil")
    weight = Direct("a", {0: evil.deltas["a"]}, trained, start, by_column=False)
    require_reach([weight], [evil])
    with pytest.raises(WeightWatchError, match="'evil' has a reach of 0 in"):
        require_reach([], [evil])


def test_to_begin_with_a_subspace_reads_the_start_of_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = started("all weights", "factors", mode="subspace", sides="outputs")
    read: Counter[str] = Counter()
    plain = StateDict.read

    def counted(self: StateDict, name: str, *others: Any) -> torch.Tensor:
        read[name] += 1
        return plain(self, name, *others)

    monkeypatch.setattr(StateDict, "read", counted)
    run.guard.begin(run.model, run.optimizer)
    assert set(read.values()) == {1}
    assert len(read) == len(run.guard.directions[0].deltas)
