"""The outputs that directions write to, and the inputs that they read from, do not move."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from tests import oracle as slow
from tests.guard.test_parts import CASES, of_kind, untied
from tests.support.guards import begun, bits, same
from tests.support.models import lora, low_rank
from weightwatch.vectors import Direction, WeightWatchError


def columns(model: nn.Module) -> set[str]:
    """Return the names of the weights whose outputs are columns."""
    layers = {slow.canonical(path + "."): module for path, module in model.named_modules()}
    return {
        f"{path}weight" for path, m in layers.items() if isinstance(m, nn.Embedding) or type(m).__name__ == "Conv1D"
    }


def basis(name: str, ws: Sequence[dict[str, Tensor]], turned: bool, rank: int) -> Tensor:
    """Return the leading left singular vectors of [w₁, w₂, …], each of shape (out, in)."""
    several = [w[name] for w in ws if name in w]
    tall = torch.cat([w.T if turned else w.reshape(len(w), -1) for w in several], 1)
    u, values, _ = torch.linalg.svd(tall, full_matrices=False)
    return u[:, : min(rank, int((values > 1e-9 * values[0]).sum()))]


def off(x: Tensor, u: Tensor) -> Tensor:
    """Return a matrix without what lies in the span of orthonormal columns."""
    return x - u @ (u.T @ x)


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize(
    "case",
    ["all weights", "all weights, tied", "all weights of Conv1D", "LoRA", "LoRA on Conv1D", "LoRA on embeddings"],
)
@pytest.mark.parametrize(("sides", "rank"), [("outputs", 1), ("outputs", 5), ("inputs", 3), ("both", 3)])
def test_what_directions_write_to_and_read_from_does_not_move(case: str, kind: str, rank: int, sides: str) -> None:
    base, build, _ = CASES[case]
    directions = [of_kind(kind, base(), 5, name="one"), of_kind(kind, base(), 6, name="other")]
    run = begun(build(), directions, mode="subspace", rank=rank, sides=sides)
    ws, turned = [slow.dense(direction) for direction in directions], columns(base())
    for _ in range(2):
        before, after = run.step()
        moved, kept, count = run.tau(before), run.tau(after), 0
        for name, tau in moved.items():
            if not any(name in w for w in ws):
                assert torch.equal(tau, kept[name])
            elif tau.any():
                rows, rest = (x.T if name in turned else x.reshape(len(x), -1) for x in (tau, kept[name]))
                want = rows
                if sides != "inputs" or tau.ndim == 1:
                    want = off(want, basis(name, ws, name in turned, rank))
                if sides != "outputs" and tau.ndim > 1:
                    want = off(want.T, basis(name, ws, name not in turned, rank)).T
                size = rows.norm() + 1e-3 * before[name].norm()
                assert (want - rest).norm() <= 4e-5 * size, name
                count += bool((want - rows).norm() > 1e-3 * rows.norm())
        assert count


@pytest.mark.parametrize("case", ["all weights", "LoRA", "LoRA on Conv1D"])
@pytest.mark.parametrize("sides", ["outputs", "inputs"])
def test_the_share_is_of_what_the_weights_have_lost(case: str, sides: str) -> None:
    base, build, _ = CASES[case]
    run = begun(build(), [low_rank(base(), 5)], mode="subspace", rank=2, sides=sides)
    path = 0.0
    for _ in range(2):
        before, after = run.step()
        path += sum(float((before[name] - after[name]).square().sum()) for name in before) ** 0.5
    account = run.guard.account(update_norm=2.0)
    assert path > 0
    assert (account.steps, account.dose) == (2, {})
    assert account.share == pytest.approx(path / 2.0, rel=1e-3)


def test_a_share_of_the_movement_is_taken_back_at_a_time() -> None:
    evil = low_rank(untied(), 5)
    run = begun(lora(untied()), [evil], mode="subspace", rank=2, sides="outputs", strength=0.25)
    before, after = run.step()
    w, moved, kept = slow.dense(evil), run.tau(before), run.tau(after)
    for name in w:
        u = basis(name, [w], False, 2)
        if moved[name].any():
            assert torch.allclose(u.T @ kept[name], 0.75 * u.T @ moved[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("factor", ["A", "B"])
def test_the_momentum_of_adapters_leads_to_no_such_inputs_and_outputs(factor: str) -> None:
    run = begun(lora(untied()), [evil := low_rank(untied(), 5)], mode="subspace", rank=1)
    run.step()
    run.step()
    w, seen = slow.dense(evil), 0
    for key, parameter in run.model.named_parameters():
        name = slow.canonical(key.partition(".lora_")[0] + ".base_layer.weight")
        if f".lora_{factor}" in key and name in w:
            moment = run.optimizer.state[parameter]["exp_avg"].double()
            rows = moment.T if factor == "A" else moment
            assert moment.any()
            assert (basis(name, [w], factor == "A", 1).T @ rows).norm() <= 1e-5 * moment.norm(), name
            seen += 1
    assert seen == 14


def test_the_momentum_of_weights_themselves_is_left_alone() -> None:
    run = begun(untied(), [low_rank(untied(), 5)], mode="subspace")
    run.step()
    run.backward()
    run.optimizer.step()
    before, moments = bits(run.model), [state["exp_avg"].clone() for state in run.optimizer.state.values()]
    run.guard.after_step()
    assert not same(before, bits(run.model))
    after = [state["exp_avg"] for state in run.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(moments, after, strict=True))


def test_a_factor_that_is_not_finite_is_seen_at_once() -> None:
    run = begun(lora(untied()), [low_rank(untied(), 5)], mode="subspace")
    run.step()
    run.backward()
    run.optimizer.step()
    factor = next(p for key, p in run.model.named_parameters() if ".lora_A" in key)
    with torch.no_grad():
        factor[0, 0] = torch.nan
    before = bits(run.model)
    with pytest.raises(WeightWatchError, match=r"found NaN or infinite values .* and changed nothing\."):
        run.guard.after_step()
    assert same(before, bits(run.model))


def test_nothing_is_changed_if_one_weight_of_several_is_not_finite() -> None:
    run = begun(untied(), [low_rank(untied(), 5)], mode="subspace")
    run.backward()
    run.optimizer.step()
    with torch.no_grad():
        list(run.model.model.layers)[-1].mlp.down_proj.weight[3, 2] = torch.nan
    before = bits(run.model)
    with pytest.raises(
        WeightWatchError, match=r"found NaN or infinite values .* and changed nothing\. Lower the learn"
    ):
        run.guard.after_step()
    assert same(before, bits(run.model))


@pytest.mark.parametrize(
    ("case", "sides", "factor"),
    [
        ("LoRA that is trained further", "outputs", "B"),
        ("LoRA with B frozen", "outputs", "B"),
        ("LoRA that is trained further", "inputs", "A"),
        ("LoRA with A frozen", "both", "A"),
    ],
)
def test_sides_that_one_factor_alone_can_not_keep_are_refused(case: str, sides: str, factor: str) -> None:
    base, build, starts = CASES[case]
    with pytest.raises(WeightWatchError, match=rf"can't be changed by {factor} alone\. Use `mode: update`\."):
        begun(build(), [low_rank(base(), 5)], starts=starts, mode="subspace", sides=sides)


def test_weights_of_more_dimensions_have_no_known_outputs() -> None:
    model = nn.Conv1d(3, 4, 2)
    evil = Direction.from_tensors({"weight": torch.randn(4, 3, 2)}, name="evil")
    with pytest.raises(
        WeightWatchError, match=r"weight has 3 dimensions, so its outputs are not known\. Use `mode: upd"
    ):
        begun(model, [evil], mode="subspace")
