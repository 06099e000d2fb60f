"""The guard of a training: gradients, momentum, the end, what it leaves alone, and what it refuses."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

from tests import oracle as slow
from tests.guard.test_parts import started, untied
from tests.support.guards import Run, begun, bits, same, wanted
from tests.support.models import dense, lora, low_rank, tiny_llama
from weightwatch.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.arithmetic import scale


def adam(trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(trained, lr=1e-2)


def momentum(trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained, lr=1.0, momentum=0.9)


def plain_name(key: str) -> str:
    """Return the name in the plain model of the weight that a parameter changes."""
    before, adapted, _ = key.partition(".lora_")
    return slow.canonical(f"{before}.base_layer.weight" if adapted else key)


# mode: gradient


def first_order(
    model: nn.Module, name: str, w: Tensor, of: Callable[[nn.Parameter], Tensor | None]
) -> dict[str, float]:
    """Return ⟨dτ,w⟩, relative to ‖dτ‖ ‖w‖, if a parameter of a weight moves by some tensor and the others stay."""
    if name in (found := dict(model.named_parameters())):
        change = of(found[name])
        return {} if change is None else {"": _cosine(change.double(), w)}
    halves = {key: p for key, p in found.items() if ".lora_" in key and plain_name(key) == name}
    if not halves:
        return {}
    (a,), (b,) = ([p for key, p in halves.items() if f"_{half}." in key] for half in "AB")
    layer = model.get_submodule(next(iter(halves)).partition(".lora_")[0]).get_base_layer()
    turned = isinstance(layer, nn.Embedding | Conv1D)
    da, db = of(a), of(b)
    moves = {
        "A": None if da is None else b.detach().double() @ da.double(),
        "B": None if db is None else db.double() @ a.detach().double(),
    }
    return {half: _cosine(m.T if turned else m, w) for half, m in moves.items() if m is not None}


def _cosine(change: Tensor, w: Tensor) -> float:
    size = float(change.norm() * w.norm())
    return float((change * w).sum()) / size if size else 0.0


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


# mode: checkpoint, and when it is on


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


# Momentum


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
                half = {"A": "A", "B": "B"}.get(key.partition("_A.")[1][1:2] or key.partition("_B.")[1][1:2], "")
                lead = first_order(run.model, name, w[name], lambda p: -_moment(run, p))
                assert lead[half] <= 1e-5, key
                seen += not torch.equal(moment, kept[key])
            rest = run.optimizer.state[parameter]
            for what in set(others[key]) - {"exp_avg", "momentum_buffer"}:
                assert torch.equal(rest[what], others[key][what])
    assert seen


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


# Not a number


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


# Refusals


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


@pytest.fixture
def accelerator() -> Iterator[None]:
    Accelerator(cpu=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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
