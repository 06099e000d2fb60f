"""What a guard refuses before it begins."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import nn
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from tests.guard.test_parts import untied
from tests.support.guards import Run, adam, begun, wanted
from tests.support.models import dense, lora, low_rank, tiny_llama
from weightwatch.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.arithmetic import scale

EVIL, GOOD = low_rank(untied(), 5), low_rank(untied(), 6, name="good")
CONTROL = low_rank(untied(), 7, name="noise", kind="control")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no witness": ({}, r"^guard: a guard needs a `witness`, .* or write `witness: none` to go without\.$"),
    "the witness is guarded": ({"directions": ["evil"], "witness": "evil"}, r"'evil' is both guarded and the witness"),
    "a direction that is not watched": (
        {"directions": ["envy"], "witness": "good"},
        r"^guard: 'envy' is not watched\. Watched directions: evil, good, noise, .*Add it under `directions:`\.$",
    ),
    "a witness that is not watched": ({"witness": "envy"}, r"^guard: 'envy' is not watched\. .*Add it under"),
    "a control": ({"directions": ["noise"], "witness": "good"}, r"^guard: 'noise' is a control.* Guard a behaviour"),
    "a witness that is a control": ({"directions": ["evil"], "witness": "noise"}, r"'noise' is a control"),
    "a witness that is the same": (
        {"directions": ["evil"], "witness": "again"},
        r"witness 'again' has the same weights as 'evil', which is guarded\. Build another one, from other data",
    ),
    "a witness that is a multiple": ({"directions": ["evil"], "witness": "twice"}, r"'twice' has the same weights as"),
    "a negative budget": ({"witness": "none", "budget": -0.1}, r"budget: -0\.1 is not allowed; it should be greater"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_guard_that_can_not_be_is_refused(case: str) -> None:
    settings, message = REFUSED[case]
    again = Direction.from_tensors(EVIL.deltas, name="again", metadata={"kind": "behaviour"})
    twice = scale(EVIL, 2.0, name="twice")
    monitor = Monitor([EVIL, GOOD, CONTROL, again, twice])
    with pytest.raises(WeightWatchError, match=message) as caught:
        Guard(monitor, settings)
    assert str(caught.value).endswith(".")


def test_a_witness_that_is_watched_alone_is_no_guard() -> None:
    with pytest.raises(WeightWatchError, match=r"the witness is the only behaviour that is watched\. Watch the one to"):
        Guard(Monitor([EVIL, CONTROL]), {"witness": "evil"})


def test_a_witness_of_the_same_norms_is_another_direction() -> None:
    generator = torch.Generator().manual_seed(1)
    other = {n: d.dense()[torch.randperm(len(d.dense()), generator=generator)] for n, d in EVIL.deltas.items()}
    monitor = Monitor([EVIL, Direction.from_tensors(other, name="other", metadata={"kind": "behaviour"})])
    guard = Guard(monitor, {"witness": "other"})
    assert [direction.name for direction in guard.directions] == ["evil"]


def test_all_behaviours_but_the_witness_are_guarded_by_default() -> None:
    third = low_rank(untied(), 8, name="third")
    guard = Guard(Monitor([EVIL, CONTROL, GOOD, third]), {"witness": "good"})
    assert [direction.name for direction in guard.directions] == ["evil", "third"]


def test_the_witness_is_not_touched() -> None:
    monitor = Monitor([EVIL, GOOD])
    model = lora(untied())
    guard = Guard(monitor, {"witness": "good"})
    trained = [p for p in model.parameters() if p.requires_grad]
    run = Run(model, copy.deepcopy(model), guard, adam(trained))
    guard.begin(model, run.optimizer)
    for _ in range(3):
        before, after = run.step()
        want = wanted(run, run.tau(before), [EVIL])
        for name, each in want.items():
            assert (before[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * before[name].norm(), name


def schedule_free(trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return an optimizer whose groups say, as those of the schedulefree package do, which weights are in the model."""
    return torch.optim.SGD([{"params": list(trained), "train_mode": True}], lr=0.1)


@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint"])
def test_an_optimizer_without_a_schedule_is_refused(mode: str) -> None:
    with pytest.raises(
        WeightWatchError, match=r"\(schedule-free\), so .* returns\. Use an .* or `mode: preventative`\."
    ):
        begun(lora(untied()), [EVIL], optimizer=schedule_free, mode=mode)
    begun(lora(untied()), [EVIL], optimizer=schedule_free, mode="preventative").guard.end()


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda trained: LayerWiseDummyOptimizer({p: torch.optim.SGD([p]) for p in trained}),
        lambda trained: DeepSpeedOptimizerWrapper(torch.optim.SGD(trained)),
    ],
    ids=["layerwise", "DeepSpeed"],
)
def test_an_optimizer_that_steps_inside_backward_rules_out_gradients(optimizer: Any) -> None:
    with pytest.raises(WeightWatchError, match=r"steps during the backward pass, before .* Use `mode: update`\."):
        begun(lora(untied()), [EVIL], optimizer=optimizer, mode="gradient")
    begun(lora(untied()), [EVIL], optimizer=optimizer)


# What a reading leaves out


def resized(late: bool) -> tuple[nn.Module, Monitor, Direction]:
    """Return a model whose vocabulary was resized, after θ₀ was saved or before; embedding and head are tied."""
    base = tiny_llama()
    evil = dense(base, 5)
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    base.resize_token_embeddings(60)
    if not late:
        start = {name: p.detach().clone() for name, p in base.named_parameters()}
    return base, Monitor([evil], reference=start), evil


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint"])
def test_much_of_a_direction_in_weights_that_no_reading_has_is_refused(mode: str, late: bool) -> None:
    model, monitor, evil = resized(late)
    share = evil.squares["model.embed_tokens.weight"] / sum(evil.squares.values())
    message = (
        rf"^{100 * share:.3g} % of ‖w‖² of direction 'evil' can't be kept out of the update: model\.embed_tokens\."
        r"weight would train unguarded \(.*: the vocabulary was resized\)\. Freeze what is named, choose the layers"
    )
    with pytest.raises(WeightWatchError, match=message):
        Guard(monitor, {"witness": "none", "mode": mode}).begin(model)


@pytest.mark.parametrize("way_out", ["frozen", "layers"])
def test_the_guard_of_what_is_left_begins_where_that_is_asked_for(
    way_out: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, monitor, _ = resized(late=True)
    if way_out == "frozen":
        model.get_input_embeddings().weight.requires_grad_(False)
    Guard(monitor, {"witness": "none", "layers": [0, 1] if way_out == "layers" else []}).begin(model)
    assert "is left out by the guard" not in caplog.text


def test_little_of_it_is_told_by_name(caplog: pytest.LogCaptureFixture) -> None:
    model, monitor, evil = resized(late=True)
    little = {n: d * (0.01 if "embed" in n else 1.0) for n, d in evil.deltas.items()}
    monitor = Monitor([Direction.from_tensors(little, name="evil")], reference=monitor.reference)
    Guard(monitor, {"witness": "none"}).begin(model)
    assert "weightwatch: model.embed_tokens.weight is left out by the guard: θ₀ has shape (48, 32) for" in caplog.text
