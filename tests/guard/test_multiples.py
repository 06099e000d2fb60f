"""What is taken out of gradients and of a model at the end, and what is not finite."""

import copy

import pytest
import torch

from tests import oracle as slow
from tests.guard.test_parts import started
from tests.support.guards import bits, first_order, momentum, plain_name, same, wanted
from weightwatch.vectors import WeightWatchError


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA on embeddings", "LoRA that is trained further"])
def test_a_step_along_guarded_gradients_does_not_lead_towards_a_direction(case: str, kind: str) -> None:
    run, directions = started(case, kind, (5, 6), mode="gradient", optimizer=momentum)
    for _ in range(2):
        run.backward()
        raw = {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}
        now = bits(run.model)
        run.guard.before_step()
        assert same(now, bits(run.model))
        towards = 0
        for w in map(slow.dense, directions):
            for name in w:
                by_key = {id(p): raw.get(key) for key, p in run.model.named_parameters()}
                was = first_order(run.model, name, w[name], lambda p: None if by_key[id(p)] is None else -by_key[id(p)])  # noqa: B023
                now_is = first_order(run.model, name, w[name], lambda p: None if p.grad is None else -p.grad)
                assert was.keys() == now_is.keys()
                assert all(value <= 1e-6 for value in now_is.values()), (name, now_is)
                towards += any(value > 1e-3 for value in was.values())
        assert towards
        run.optimizer.step()


def test_the_smallest_change_of_a_gradient_is_made() -> None:
    run, directions = started("all weights", "dense", (5, 6), mode="gradient")
    run.backward()
    raw = {name: p.grad.double() for name, p in run.model.named_parameters()}
    run.guard.before_step()
    want = wanted(run, {name: -grad for name, grad in raw.items()}, directions)
    for name, parameter in run.model.named_parameters():
        off = (parameter.grad.double() - raw[name] - want[name]).norm()
        assert off <= 1e-5 * want[name].norm() + 1e-7 * raw[name].norm(), name


def test_gradients_away_are_left_bit_for_bit() -> None:
    run, (evil,) = started("all weights", "dense", mode="gradient")
    run.backward()
    raw = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    run.guard.before_step()
    w = slow.dense(evil)
    away = {name for name, grad in raw.items() if float((-grad.double() * w[name]).sum()) <= 0}
    assert 0 < len(away) < len(raw)
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter.grad, raw[name]) == (name in away)


def test_a_weight_without_a_gradient_does_not_keep_others_from_being_guarded() -> None:
    run, (evil,) = started("LoRA", "factors", mode="gradient")
    run.backward()
    for name, parameter in run.model.named_parameters():
        if "layers.0.self_attn.q_proj" in name:
            parameter.grad = None
    run.guard.before_step()
    w = slow.dense(evil)
    for name in w:
        found = first_order(run.model, name, w[name], lambda p: None if p.grad is None else -p.grad)
        assert all(value <= 1e-6 for value in found.values()), name
    assert all(p.grad is None for n, p in run.model.named_parameters() if "layers.0.self_attn.q_proj" in n)


def test_without_any_gradient_nothing_is_done() -> None:
    run, _ = started("LoRA", "factors", mode="gradient")
    run.guard.before_step()
    assert run.guard.account().steps == 1


def test_the_share_of_gradients_is_one_of_their_norm() -> None:
    run, _ = started("all weights", "dense", mode="gradient")
    shares = []
    for _ in range(2):
        run.backward()
        raw = {name: p.grad.double() for name, p in run.model.named_parameters()}
        run.guard.before_step()
        out = {name: raw[name] - p.grad.double() for name, p in run.model.named_parameters()}
        norms = [sum(float(each.square().sum()) for each in of.values()) ** 0.5 for of in (out, raw)]
        shares.append(norms[0] / norms[1])
        run.optimizer.step()
    account = run.guard.account(update_norm=5.0)
    assert shares[0] > 1e-4
    assert (account.steps, account.dose) == (2, {})
    assert account.share == pytest.approx(sum(shares) / 2, rel=1e-3)


@pytest.mark.parametrize("case", ["all weights", "LoRA"])
def test_the_budget_holds_when_training_has_ended(case: str) -> None:
    run, directions = started(case, "factors", (5, 6), mode="checkpoint", budget=1e-4)
    for _ in range(3):
        run.backward()
        run.guard.before_step()
        run.optimizer.step()
        before = bits(run.model)
        run.guard.after_step()
        assert same(before, bits(run.model))
    moments = {id(p): run.optimizer.state[p]["exp_avg"].clone() for p in run.optimizer.state}
    before = run.weights()
    want = wanted(run, run.tau(before), directions, budget=1e-4)
    run.guard.end()
    after = run.weights()
    assert any(bool(each.any()) for each in want.values())
    for name, each in want.items():
        assert (before[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * before[name].norm(), name
    assert all(torch.equal(run.optimizer.state[p]["exp_avg"], moments[id(p)]) for p in run.optimizer.state)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", ["update", "gradient", "checkpoint"])
@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA on embeddings"])
def test_what_is_not_finite_ends_it_and_not_one_weight_is_changed(case: str, mode: str, value: float) -> None:
    run, (evil, _) = started(case, "factors", (5, 6), mode=mode)
    for _ in range(2):
        run.step()
    run.backward()
    guarded = [p for key, p in run.model.named_parameters() if p.requires_grad and plain_name(key) in evil.deltas]
    with torch.no_grad():
        where = guarded[-1].grad if mode == "gradient" else guarded[-1]
        where.view(-1)[3] = value
    grads = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
    before, state = bits(run.model), copy.deepcopy(run.optimizer.state_dict())
    with pytest.raises(
        WeightWatchError, match=r"found NaN or infinite values .* and changed nothing\. Lower the learn"
    ):
        {"update": run.guard.after_step, "gradient": run.guard.before_step, "checkpoint": run.guard.end}[mode]()
    assert same(before, bits(run.model))
    assert same(grads, {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
    assert str(state) == str(run.optimizer.state_dict())
