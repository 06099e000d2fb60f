"""What a guard takes back after a step is the smallest change that meets the bounds, for all that it can guard."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests import oracle as slow
from tests.support.adapters import EXACT
from tests.support.guards import Run, begun, bits, correlated, same, wanted
from tests.support.models import dense, lora, low_rank, move, tiny_gpt2, tiny_llama
from weightwatch.vectors import Direction

HALF = ["q_proj", "down_proj"]


def untied() -> nn.Module:
    return tiny_llama(tie_word_embeddings=False)


def moved(model: nn.Module) -> nn.Module:
    """Return an adapter that has been trained before."""
    move(model, seed=8, size=0.2)
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], bool]] = {
    # the base, the trained model, and whether it does not start at zero
    "all weights": (untied, untied, False),
    "all weights, tied": (tiny_llama, tiny_llama, False),
    "all weights of Conv1D": (tiny_gpt2, tiny_gpt2, False),
    "LoRA": (untied, lambda: lora(untied()), False),
    "LoRA, rank-stabilised, with patterns": (
        untied,
        EXACT["LoRA, rank-stabilised, with patterns"].build,
        False,
    ),
    "LoRA on Conv1D": (tiny_gpt2, EXACT["LoRA on Conv1D"].build, False),
    "LoRA on embeddings": (untied, EXACT["LoRA on embeddings"].build, False),
    "LoRA with A frozen": (untied, EXACT["LoRA with A frozen"].build, False),
    "LoRA with B frozen": (untied, EXACT["LoRA with B frozen"].build, True),
    "LoRA on a parameter": (untied, EXACT["LoRA on a parameter"].build, False),
    "LoRA beside a frozen LoRA": (untied, EXACT["LoRA beside a frozen LoRA"].build, False),
    "LoRA beside copies of modules": (
        untied,
        lambda: lora(untied(), target_modules=HALF, modules_to_save=["lm_head", "norm"]),
        False,
    ),
    "LoRA that is trained further": (untied, lambda: moved(lora(untied())), True),
    "LoRA on embeddings that is trained further": (
        untied,
        lambda: moved(EXACT["LoRA on embeddings"].build()),
        True,
    ),
    "LoRA: PiSSA": (untied, EXACT["LoRA: PiSSA"].build, True),
    "LoRA with TRL's ref": (untied, EXACT["LoRA with TRL's ref"].build, False),
}


def of_kind(kind: str, base: nn.Module, seed: int, **settings: str) -> Direction:
    return dense(base, seed, **settings) if kind == "dense" else low_rank(base, seed, **settings)


def started(case: str, kind: str, seeds: tuple[int, ...] = (5,), **settings: object) -> tuple[Run, list[Direction]]:
    base, build, starts = CASES[case]
    directions = [of_kind(kind, base(), seeds[0])]
    directions += [correlated(directions[0], of_kind(kind, base(), seed), name=f"evil-{seed}") for seed in seeds[1:]]
    return begun(build(), directions, starts=starts, **settings), directions


def assert_smallest(
    run: Run, directions: list[Direction], steps: int = 2, strength: float = 1.0, **bounds: object
) -> None:
    """Assert that what is taken back after each step is what the oracle says, and something at all."""
    taken = False
    for step in range(10):
        before, after = run.step()
        want = wanted(run, run.tau(before), directions, **bounds)
        taken = taken or any(bool(each.any()) for each in want.values())
        for name, each in want.items():
            off = (before[name] - after[name] - strength * each).norm()
            assert off <= 1e-4 * each.norm() + 1e-7 * before[name].norm(), name
        if taken and step + 1 >= steps:
            return
    raise AssertionError("nothing was to be taken back")


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize("case", CASES)
def test_the_smallest_change_is_taken_back_that_meets_the_budget(case: str, kind: str) -> None:
    run, directions = started(case, kind)
    assert_smallest(run, directions)
    (w,) = map(slow.dense, directions)
    for name, tau in run.tau(run.weights()).items():
        if name in w:
            assert float((tau * w[name]).sum()) <= 1e-5 * float(tau.norm() * w[name].norm()) + 1e-8, name


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA on Conv1D", "LoRA on embeddings"])
def test_several_directions_are_taken_back_together(case: str, kind: str) -> None:
    run, directions = started(case, kind, (5, 6, 7))
    assert_smallest(run, directions)
    tau = run.tau(run.weights())
    for w in map(slow.dense, directions):
        for name in w:
            assert float((tau[name] * w[name]).sum()) <= 1e-5 * float(tau[name].norm() * w[name].norm()) + 1e-8, name


@pytest.mark.parametrize("case", ["all weights", "LoRA"])
def test_directions_of_different_tensors_and_forms_are_taken_back_together(case: str) -> None:
    base, build, _ = CASES[case]
    some = {name: delta for name, delta in low_rank(base(), 5).deltas.items() if "layers.0" in name or "q_proj" in name}
    directions = [Direction.from_tensors(some, name="some"), dense(base(), 6)]
    assert_smallest(begun(build(), directions), directions)


@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA that is trained further"])
@pytest.mark.parametrize(
    "settings",
    [{"budget": 1e-3}, {"both_ways": True}, {"both_ways": True, "budget": 1e-3}, {"per": "model"}],
    ids=str,
)
def test_bounds_are_those_of_the_settings(case: str, settings: dict[str, object]) -> None:
    run, directions = started(case, "factors", (5, 6), **settings)
    bounds = {key: value for key, value in settings.items() if key != "per"}
    assert_smallest(run, directions, whole="per" in settings, **bounds)


@pytest.mark.parametrize("case", ["all weights", "LoRA"])
def test_a_share_of_the_excess_is_taken_back_at_a_time(case: str) -> None:
    run, directions = started(case, "factors", strength=0.5)
    assert_smallest(run, directions, strength=0.5)


@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA on embeddings"])
def test_movement_away_is_left_bit_for_bit(case: str) -> None:
    _base, _, _ = CASES[case]
    run, (evil,) = started(case, "factors")
    run.backward()
    run.optimizer.step()
    w, tau = slow.dense(evil), run.tau(run.weights())
    before = bits(run.model)
    run.guard.after_step()
    away = {name for name in w if float((tau[name] * w[name]).sum()) <= 0}
    assert 0 < len(away) < len(w)
    after = bits(run.model)
    for name, tensor in before.items():
        plain = slow.canonical(name.partition(".lora_")[0] + ".base_layer.weight" if ".lora_" in name else name)
        if plain in away or plain not in w:
            assert same({"": tensor}, {"": after[name]}), name


def test_the_layers_that_are_named_are_guarded_alone() -> None:
    run, directions = started("LoRA", "factors", layers=[1])
    for _ in range(2):
        before, after = run.step()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all(".layers.1." in name for name in moved)
    some = {name: delta for name, delta in directions[0].deltas.items() if ".layers.1." in name}
    assert_smallest(run, [Direction.from_tensors(some, name="some")])


def test_a_weight_without_a_gradient_does_not_keep_others_from_being_guarded() -> None:
    run, directions = started("LoRA", "factors")
    run.backward()
    for name, parameter in run.model.named_parameters():
        if "layers.0.self_attn.q_proj" in name:
            parameter.grad = None
    run.optimizer.step()
    before = run.weights()
    run.guard.after_step()
    want, after = wanted(run, run.tau(before), directions), run.weights()
    for name, each in want.items():
        assert (before[name] - after[name] - each).norm() <= 1e-4 * each.norm() + 1e-7 * before[name].norm(), name
