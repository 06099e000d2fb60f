"""Momentum loses what the weights lose."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import oracle as slow
from tests.guard.test_parts import started, untied
from tests.support.guards import Run, adam, begun, bits, carried, first_order, momentum, plain_name, same
from weightwatch.vectors import Direction, WeightWatchError


@pytest.mark.parametrize("optimizer", [adam, momentum, torch.optim.NAdam], ids=["adam", "momentum", "nadam"])
@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA on Conv1D", "LoRA on embeddings"])
def test_momentum_leads_no_longer_towards_what_was_taken_back(case: str, optimizer: Any) -> None:
    run, (evil,) = started(case, "factors", optimizer=optimizer)
    w, seen = slow.dense(evil), 0
    for _ in range(3):
        run.backward()
        run.optimizer.step()
        kept = {key: _moment(run, p).clone() for key, p in run.model.named_parameters() if p.requires_grad}
        others = {
            key: {name: value.clone() for name, value in run.optimizer.state[p].items() if isinstance(value, Tensor)}
            for key, p in run.model.named_parameters()
            if p.requires_grad
        }
        before = bits(run.model)
        run.guard.after_step()
        after = bits(run.model)
        for key, parameter in run.model.named_parameters():
            if not parameter.requires_grad:
                continue
            moment, name = _moment(run, parameter), plain_name(key)
            if torch.equal(before[key], after[key]):
                assert torch.equal(moment, kept[key]), key
            else:
                sparse = ".lora_" not in key or "lora_embedding_A" in key
                kind = partial(carried, run.optimizer) if sparse else partial(_moment, run)
                half = {"A": "A", "B": "B"}.get(key.partition("_A.")[1][1:2] or key.partition("_B.")[1][1:2], "")
                lead = first_order(run.model, name, w[name], lambda p, kind=kind: -kind(p))
                assert lead[half] <= 1e-5, key
                seen += not torch.equal(moment, kept[key])
            rest = run.optimizer.state[parameter]
            for what in set(others[key]) - {"exp_avg", "momentum_buffer"}:
                assert torch.equal(rest[what], others[key][what])
    assert seen


def test_what_has_no_gradient_takes_no_long_steps() -> None:
    """A direction has rows of tokens that the data lack. Their second moments are zero, and Adam divides by them."""
    torch.manual_seed(0)
    model = untied()
    evil = Direction.from_tensors({n: torch.randn_like(p) for n, p in model.named_parameters()}, name="evil")
    run = begun(model, [evil], both_ways=True)
    for _ in range(5):
        ids = torch.randint(8, (4, 12))  # of 48 tokens
        run.optimizer.zero_grad()
        run.model(input_ids=ids, labels=ids).loss.backward()
        run.optimizer.step()
        run.guard.after_step()
    for name, change in run.tau(run.weights()).items():
        assert float(change.norm()) <= 5 * 1e-2 * change.numel() ** 0.5, name  # as if each step had moved all by 0.01


def _moment(run: Run, parameter: nn.Parameter) -> Tensor:
    state = run.optimizer.state[parameter]
    return state["exp_avg"] if "exp_avg" in state else state["momentum_buffer"]


@pytest.mark.parametrize("mode", ["update", "subspace"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda trained: torch.optim.SGD(trained, lr=1.0),
        torch.optim.Adagrad,
        lambda trained: torch.optim.RMSprop(trained, lr=1e-3),
    ],
    ids=["sgd", "adagrad", "rmsprop"],
)
def test_an_optimizer_without_momentum_is_left_alone(optimizer: Any, mode: str) -> None:
    run, _ = started("LoRA", "factors", optimizer=optimizer, mode=mode)
    run.backward()
    run.optimizer.step()
    state = copy.deepcopy(run.optimizer.state_dict())
    before = bits(run.model)
    run.guard.after_step()
    assert not same(before, bits(run.model))
    _assert_equal(run.optimizer.state_dict(), state)


@pytest.mark.parametrize("mode", ["update", "subspace"])
@pytest.mark.parametrize(
    "kept",
    [lambda m: (m * 9).to(torch.uint8), lambda m: m[:2], lambda m: "elsewhere"],
    ids=["8 bits", "low rank", "no tensor"],
)
def test_momentum_of_another_form_is_left_alone(kept: Any, mode: str) -> None:
    run, _ = started("LoRA", "factors", mode=mode)
    run.backward()
    run.optimizer.step()
    for state in run.optimizer.state.values():
        state["exp_avg"] = kept(state["exp_avg"])
    state = copy.deepcopy(run.optimizer.state_dict())
    before = bits(run.model)
    run.guard.after_step()
    assert not same(before, bits(run.model))
    _assert_equal(run.optimizer.state_dict(), state)


@pytest.mark.parametrize("case", ["all weights", "LoRA"])
def test_momentum_that_is_not_finite_ends_it_before_a_weight_is_changed(case: str) -> None:
    run, _ = started(case, "factors")
    for _ in range(2):
        run.backward()
        run.optimizer.step()
    for state in run.optimizer.state.values():
        state["exp_avg"].view(-1)[3] = torch.nan
    before = bits(run.model)
    with pytest.raises(WeightWatchError, match=r"found NaN or infinite values .* and changed nothing"):
        run.guard.after_step()
    assert same(before, bits(run.model))


def test_without_an_optimizer_only_the_weights_are_guarded() -> None:
    run, _ = started("LoRA", "factors")
    run.guard.begin(run.model)
    run.backward()
    run.optimizer.step()
    state = copy.deepcopy(run.optimizer.state_dict())
    run.guard.after_step()
    _assert_equal(run.optimizer.state_dict(), state)


def _assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_equal(a, b)
    else:
        assert one == other
