"""In training mode, a model computes what it would with weights of W + k·w; otherwise it is as it was."""

import contextlib
import copy
import io
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests import oracle as slow
from tests.guard.test_parts import CASES, of_kind, untied
from tests.support.guards import begun, bits, same
from tests.support.models import dense, lora, tiny_llama
from weightwatch.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.vectors import Direction, WeightWatchError

IDS = torch.arange(24).reshape(2, 12)


def shifted(model: nn.Module, directions: Sequence[Direction], k: float) -> nn.Module:
    """Return a copy whose weights are W + k·w; under adapters, those beneath them."""
    twin = copy.deepcopy(model)
    ws = [slow.dense(direction) for direction in directions]
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            if "lora_" not in key and ".original_module." not in key:
                for w in ws:
                    if slow.canonical(key) in w:
                        parameter += k * w[slow.canonical(key)].float()
    return twin


def loss_of(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def named(kind: str, base: nn.Module, seed: int = 5) -> Direction:
    """Return a direction of all weights: those of layers and embeddings, biases, scales and biases of norms."""
    return of_kind(kind, base, seed, name=f"evil-{seed}")


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize(
    "case",
    [
        "all weights",
        "all weights, tied",
        "all weights of Conv1D",
        "LoRA",
        "LoRA on Conv1D",
        "LoRA on embeddings",
        "LoRA beside copies of modules",
        "LoRA that is trained further",
    ],
)
def test_training_sees_the_shifted_model_and_everything_else_the_plain_one(case: str, kind: str) -> None:
    base, build, starts = CASES[case]
    model = build().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    directions = [named(kind, base(), 5), named(kind, base(), 6)]
    twin, plain, before = shifted(model, directions, 0.7), copy.deepcopy(model), bits(model)
    names, hooks = list(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    run = begun(model, directions, starts=starts, mode="preventative", coefficient=0.7)
    loss, want = loss_of(model), loss_of(twin)
    assert float((loss - want).detach()) == pytest.approx(0, abs=1e-5)
    assert abs(float(want - loss_of(plain))) > 1e-3
    loss.backward()
    want.backward()
    others = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert others[name].grad is None
        else:
            assert torch.allclose(parameter.grad, others[name].grad, rtol=1e-3, atol=1e-5), name
    model.eval()
    assert torch.equal(loss_of(model), loss_of(plain.eval()))
    assert list(model.state_dict()) == names
    model.train()
    run.guard.end()
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(loss_of(model), loss_of(plain.train()))
    assert same(before, bits(model))


def test_beginning_again_does_not_add_twice() -> None:
    model = tiny_llama().train()
    evil = named("factors", model)
    twin = shifted(model, [evil], 1.0)
    run = begun(model, [evil], mode="preventative")
    run.guard.begin(model)
    assert float(loss_of(model) - loss_of(twin)) == pytest.approx(0, abs=1e-5)
    run.guard.end()
    assert not any(m._forward_hooks for m in model.modules())


def test_an_alert_begins_to_add() -> None:
    model = lora(untied()).train()
    evil = named("factors", untied())
    plain, twin = float(loss_of(model)), float(loss_of(shifted(model, [evil], 1.0)))
    run = begun(model, [evil], mode="preventative", when="alert")
    assert float(loss_of(model)) == plain
    run.guard.arm()
    assert float(loss_of(model)) == pytest.approx(twin, abs=1e-5)


@pytest.mark.parametrize("case", ["LoRA", "LoRA with TRL's ref"])
def test_the_model_that_training_is_compared_with_stays_plain(case: str) -> None:
    base, build, _ = CASES[case]
    model = build().train()
    evil = named("factors", base())

    def reference() -> float:
        if case == "LoRA":
            with model.disable_adapter():
                return float(loss_of(model).detach())
        model.set_adapter("ref")
        found = float(loss_of(model).detach())
        model.set_adapter("default")
        return found

    before, plain = reference(), float(loss_of(model).detach())
    run = begun(model, [evil], mode="preventative")
    assert reference() == before
    assert abs(float(loss_of(model).detach()) - plain) > 1e-3
    assert run.guard.armed


def test_layers_can_be_chosen() -> None:
    model = lora(untied()).train()
    evil = named("factors", untied())
    some = Direction.from_tensors({n: d for n, d in evil.deltas.items() if ".layers.1." in n}, name="some")
    twin = shifted(model, [some], 1.0)
    run = begun(model, [evil], mode="preventative", layers=[1])
    assert run.guard.armed
    assert float(loss_of(model) - loss_of(twin)) == pytest.approx(0, abs=1e-5)


# What is refused


class Attentive(nn.Module):
    """A model whose attention reads the weights of its layer itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.filters = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x, x, x)[0]
        return self.filters(mixed.mT)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        ("attention.out_proj.weight", "read by MultiheadAttention itself, which does not run it as a layer"),
        ("attention.out_proj.bias", "read by MultiheadAttention itself"),
        ("attention.in_proj_weight", "read by MultiheadAttention itself"),
        ("filters.weight", "the weight of Conv1d, which is no linear layer, embedding or norm"),
    ],
)
def test_a_weight_whose_layer_cannot_be_shifted_is_refused_by_name(weight: str, reason: str) -> None:
    model = Attentive()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    evil = Direction.from_tensors({weight: torch.ones_like(start[weight])}, name="evil")
    guard = Guard(Monitor([evil], reference=start), {"witness": "none", "mode": "preventative"})
    with pytest.raises(WeightWatchError, match=rf"^Direction 'evil' has {weight}, which is {reason}.*; `mode: prev"):
        guard.begin(model)
    assert not any(m._forward_hooks for m in model.modules())


def test_an_embedding_that_was_resized_is_refused() -> None:
    model, evil = tiny_llama(), dense(tiny_llama(), 5)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.resize_token_embeddings(60)
    guard = Guard(Monitor([evil], reference=start), {"witness": "none", "mode": "preventative"})
    with pytest.raises(
        WeightWatchError, match=r"embed_tokens.weight, which is of another shape here, \(60, 32\) and not"
    ):
        guard.begin(model)


# What it was added to


def test_a_step_in_which_nothing_was_added_is_a_fault() -> None:
    model = lora(untied()).eval()  # as some train, to be without dropout
    run = begun(model, [named("factors", untied())], mode="preventative")
    run.backward()
    with pytest.raises(WeightWatchError, match=r"^No layer to which .* was run in training mode since the step before"):
        run.guard.after_step()
    model.train()
    run.step()
    assert run.guard.account().steps == 1


class Around(nn.Module):
    """A model that reads the weight of its head itself, as fused losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x), self.head.weight)


def test_a_layer_that_the_model_goes_around_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = Around()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    evil = Direction.from_tensors({name: torch.ones(4, 4) for name in start}, name="evil")
    guard = Guard(Monitor([evil], reference=start), {"witness": "none", "mode": "preventative"})
    guard.begin(model)
    for _ in range(2):
        model(torch.ones(1, 4))
        guard.after_step()
    told = [record.message for record in caplog.records if "added nothing to" in record.message]
    assert len(told) == 1
    assert told[0].startswith("weightwatch: the guard added nothing to head.weight in its first step, since")


# When it goes


def test_it_is_gone_with_the_guard_that_a_crash_left_behind() -> None:
    model = tiny_llama().train()
    plain = float(loss_of(model))

    def crash() -> None:
        run = begun(model, [named("factors", tiny_llama())], mode="preventative")
        assert abs(float(loss_of(run.model)) - plain) > 1e-3
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        crash()
    assert not any(m._forward_hooks for m in model.modules())
    assert float(loss_of(model)) == plain


def test_copies_of_the_model_are_plain() -> None:
    model = tiny_llama().train()
    plain = loss_of(model)
    run = begun(model, [named("factors", tiny_llama())], mode="preventative")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(loss_of(copy.deepcopy(model)), plain)
    assert torch.equal(loss_of(torch.load(file, weights_only=False)), plain)
    assert abs(float(loss_of(run.model) - plain)) > 1e-3


def test_it_can_be_kept_within_the_steps_whatever_ends_them() -> None:
    model = tiny_llama().train()
    plain = float(loss_of(model))
    run = begun(model, [named("factors", tiny_llama())], mode="preventative")
    with contextlib.suppress(KeyboardInterrupt), run.guard.adding():
        assert abs(float(loss_of(model)) - plain) > 1e-3
        raise KeyboardInterrupt
    assert float(loss_of(model)) == plain
    run.guard.after_step()
