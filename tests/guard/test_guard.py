"""The guard of a training: when it is on, what it leaves alone, and its account."""

import copy

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft.tuners.lora import LoraLayer

from tests import oracle as slow
from tests.guard.test_parts import started, untied
from tests.support.guards import Run, begun, bits, same, wanted
from tests.support.models import dense, lora, low_rank, tiny_llama
from weightwatch.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.vectors import WeightWatchError


@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint"])
def test_before_an_alert_nothing_is_done(mode: str) -> None:
    run, _ = started("LoRA", "factors", mode=mode, when="alert")
    assert not run.guard.armed
    run.backward()
    grads = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
    run.guard.before_step()
    assert same(grads, {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
    run.optimizer.step()
    before = bits(run.model)
    run.guard.after_step()
    assert run.guard.account().steps == 0
    run.guard.end()
    assert same(before, bits(run.model))


def test_an_alert_switches_it_on() -> None:
    run, directions = started("LoRA", "factors", when="alert")
    run.step()
    run.guard.arm()
    before, after = run.step()
    want = wanted(run, run.tau(before), directions)
    for name, each in want.items():
        assert (before[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * before[name].norm(), name


# What it leaves alone


@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint", "preventative"])
def test_the_same_step_twice_gives_the_same_bits_and_touches_nothing_else(mode: str) -> None:
    found = []
    for _ in range(2):
        evil = low_rank(untied(), 5)
        run = begun(lora(untied()), [evil], mode=mode)
        frozen = [p.requires_grad for p in run.model.parameters()]
        for _ in range(3):
            run.backward()
            grads = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
            state = torch.get_rng_state()
            run.guard.before_step()
            if mode != "gradient":
                assert same(grads, {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
            run.optimizer.step()
            grads = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
            run.guard.after_step()
            assert same(grads, {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None})
            assert torch.equal(torch.get_rng_state(), state)
        run.guard.end()
        assert [p.requires_grad for p in run.model.parameters()] == frozen
        assert all(p.grad_fn is None for p in run.model.parameters())
        found.append(bits(run.model))
    assert same(*found)


def test_beginning_draws_no_random_numbers() -> None:
    model, evil = lora(untied()), low_rank(untied(), 5)
    state = torch.get_rng_state()
    Guard(Monitor([evil]), {"witness": "none"}).begin(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_other_than_the_one_that_was_measured_last_is_validated() -> None:
    """Its head is tied, so the direction counts once."""
    monitor = Monitor([dense(untied(), 5)], reference={n: t.clone() for n, t in untied().state_dict().items()})
    monitor.measure(untied())
    guard = Guard(monitor, {"witness": "none"})
    assert "lm_head.weight" in guard.directions[0].deltas
    guard.begin(tiny_llama())
    assert "lm_head.weight" not in guard.directions[0].deltas


# With a scaler for fp16


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("how", ["a loop of one's own", "Accelerate"])
@pytest.mark.parametrize("mode", ["gradient", "update"])
def test_a_step_that_overflows_is_left_to_the_scaler_and_the_next_is_guarded(mode: str, how: str) -> None:
    evil, model = low_rank(untied(), 5), lora(untied())
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38, backoff_factor=1e-34)
    plain = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    optimizer = plain
    if how == "Accelerate":
        optimizer = AcceleratedOptimizer(plain, scaler=scaler)
    guard = Guard(Monitor([evil]), {"witness": "none", "mode": mode})
    guard.begin(model, optimizer, scaled=None if how == "Accelerate" else True)
    run, steps = Run(model, copy.deepcopy(model), guard, plain), []
    for seed in range(4):
        ids = torch.randint(48, (4, 12), generator=torch.Generator().manual_seed(seed))
        plain.zero_grad()
        scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
        before = bits(model)
        guard.before_step()
        if how == "Accelerate":
            optimizer.step()
        else:
            scaler.step(plain)
            scaler.update()
        moved = run.weights()
        guard.after_step()
        steps.append(guard.account().steps)
        if seed == 0:
            assert same(before, bits(model))  # it was skipped
            assert scaler.get_scale() < 1e5
        elif mode == "update":
            after, want = run.weights(), wanted(run, run.tau(moved), [evil])
            for name, each in want.items():
                assert (moved[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * moved[name].norm(), name
    assert steps == ([0, 1, 1, 1] if mode == "gradient" else [1, 1, 1, 1])


def test_gradients_of_a_scaler_are_turned_like_others() -> None:
    found = []
    for scale in (1.0, 1024.0):
        run, _ = started("LoRA", "factors", mode="gradient")
        ids = torch.arange(48).reshape(4, 12)
        (scale * run.model(input_ids=ids, labels=ids).loss).backward()
        run.guard.before_step()
        found.append(
            {n: (p.grad / scale) for n, p in run.model.named_parameters() if p.grad is not None and p.grad.any()}
        )
        assert run.guard.account().share > 0
    assert all(torch.allclose(found[0][n], found[1][n], rtol=1e-4, atol=1e-8) for n in found[0])


def test_without_a_scaler_an_infinite_gradient_is_a_fault() -> None:
    run, _ = started("LoRA", "factors", mode="gradient")
    run.backward()
    next(p for p in run.model.parameters() if p.grad is not None).grad.fill_(float("inf"))
    with pytest.raises(WeightWatchError, match="NaN or infinite"):
        run.guard.before_step()


# What is unfrozen, frozen or switched in the course of the training


def part_frozen(*, known: bool, adapted: bool, **settings: object) -> Run:
    """Begin to guard a model whose second layer is frozen; θ₀ of it is at hand if it is known."""
    base = untied()
    model = lora(base) if adapted else base
    for name, parameter in model.named_parameters():
        if ".layers.1." in name:
            parameter.requires_grad_(False)
    begins = {name: p.detach().clone() for name, p in base.named_parameters() if known or p.requires_grad}
    monitor = Monitor([low_rank(untied(), 5)], reference=None if adapted else begins)
    guard, optimizer = Guard(monitor, {"witness": "none", **settings}), torch.optim.Adam(model.parameters(), lr=1e-2)
    run = Run(model, copy.deepcopy(model), guard, optimizer)
    guard.begin(model, optimizer)
    return run


def unfreeze(run: Run) -> None:
    adapted = any("lora_" in name for name, _ in run.model.named_parameters())
    for name, parameter in run.model.named_parameters():
        if ".layers.1." in name and (not adapted or "lora_" in name):
            parameter.requires_grad_(True)


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("when", ["always", "alert"])
def test_what_is_unfrozen_is_guarded_from_its_first_step(adapted: bool, when: str) -> None:
    run = part_frozen(known=True, adapted=adapted, when=when)
    evil = low_rank(untied(), 5)
    run.step()
    unfreeze(run)
    if when == "alert":
        run.step()
        run.guard.arm()
    taken = set()
    for _ in range(4):
        before, after = run.step()
        want = wanted(run, run.tau(before), [evil])
        taken |= {name for name, each in want.items() if bool(each.any())}
        for name, each in want.items():
            assert (before[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * before[name].norm(), name
    assert any(".layers.1." in name for name in taken)


def test_what_is_frozen_and_unfrozen_in_turn_stays_guarded() -> None:
    run, (evil,) = started("all weights", "factors")
    layers = [[p for n, p in run.model.named_parameters() if f".layers.{k}." in n] for k in range(2)]
    for step in range(4):
        for k, layer in enumerate(layers):
            for parameter in layer:
                parameter.requires_grad_(step % 2 == k)
        before, after = run.step()
        for name, each in wanted(run, run.tau(before), [evil]).items():
            if after[name].ne(before[name]).any() or each.any():
                assert (before[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * before[name].norm()


def test_an_adapter_that_is_scaled_stays_within_the_budget() -> None:
    run, (evil,) = started("LoRA", "factors", budget=1e-3)
    for step in range(4):
        if step == 2:
            for module in run.model.modules():
                if isinstance(module, LoraLayer):
                    module.set_scale("default", 3.0)
        before, after = run.step()
        for name, each in wanted(run, run.tau(before), [evil], budget=1e-3).items():
            assert (before[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * before[name].norm(), name
    assert run.guard.account().dose["evil"] > 0


def test_an_adapter_that_takes_the_place_of_the_first_is_guarded() -> None:
    run, _ = started("LoRA", "factors")
    run.step()
    run.model.add_adapter("second", run.model.peft_config["default"])
    run.model.set_adapter("second")
    run.optimizer.add_param_group({"params": [p for n, p in run.model.named_parameters() if ".second." in n]})
    taken = 0.0
    for _ in range(4):
        run.step()
        taken += run.guard.account().dose["evil"]
        measured = run.guard._monitor.measure(run.model)
        assert measured.update_norm > 0
        assert measured["evil"].dose <= 1e-6
    assert taken > 0


@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint"])
def test_what_is_unfrozen_and_has_no_known_start_is_a_fault_at_its_first_step(mode: str) -> None:
    run = part_frozen(known=False, adapted=False, mode=mode)
    run.step()
    unfreeze(run)
    with pytest.raises(WeightWatchError, match=r"'evil' can't be kept out .* \(it was frozen when the run began, and"):
        run.step()


def test_the_account_is_what_was_taken_back() -> None:
    run, (evil,) = started("all weights", "dense")
    dose, path = 0.0, 0.0
    w = slow.dense(evil)
    square = sum(float(x.square().sum()) for x in w.values())
    for _ in range(2):
        before, after = run.step()
        back = {name: before[name] - after[name] for name in w}
        dose += sum(float((back[name] * w[name]).sum()) for name in w) / square
        path += sum(float(each.square().sum()) for each in back.values()) ** 0.5
    account = run.guard.account(update_norm=2.0)
    assert (account.steps, account.dose["evil"]) == (2, pytest.approx(dose, rel=1e-3))
    assert account.share == pytest.approx(path / 2.0, rel=1e-3)
    assert run.guard.account().steps == 0
