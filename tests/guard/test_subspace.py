"""The outputs that directions write to do not move."""

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


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize(
    "case",
    ["all weights", "all weights, tied", "all weights of Conv1D", "LoRA", "LoRA on Conv1D", "LoRA on embeddings"],
)
@pytest.mark.parametrize("rank", [1, 5])
def test_the_outputs_that_directions_write_to_do_not_move(case: str, kind: str, rank: int) -> None:
    base, build, _ = CASES[case]
    directions = [of_kind(kind, base(), 5, name="one"), of_kind(kind, base(), 6, name="other")]
    run = begun(build(), directions, mode="subspace", rank=rank)
    ws, turned = [slow.dense(direction) for direction in directions], columns(base())
    for _ in range(2):
        before, after = run.step()
        moved, kept, count = run.tau(before), run.tau(after), 0
        for name, tau in moved.items():
            if not any(name in w for w in ws):
                assert torch.equal(tau, kept[name])
            elif tau.any():
                u = basis(name, ws, name in turned, rank)
                rows, rest = (x.T if name in turned else x.reshape(len(x), -1) for x in (tau, kept[name]))
                size = rows.norm() + 1e-3 * before[name].norm()
                assert (u.T @ rest).norm() <= 3e-5 * size, name
                assert (rows - u @ (u.T @ rows) - rest).norm() <= 3e-5 * size, name
                count += bool((u.T @ rows).norm() > 1e-3 * rows.norm())
        assert count


def test_a_share_of_the_movement_is_taken_back_at_a_time() -> None:
    evil = low_rank(untied(), 5)
    run = begun(lora(untied()), [evil], mode="subspace", rank=2, strength=0.25)
    before, after = run.step()
    w, moved, kept = slow.dense(evil), run.tau(before), run.tau(after)
    for name in w:
        u = basis(name, [w], False, 2)
        if moved[name].any():
            assert torch.allclose(u.T @ kept[name], 0.75 * u.T @ moved[name], rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("case", ["all weights", "LoRA"])
def test_the_momentum_has_no_such_outputs_either(case: str) -> None:
    base, build, _ = CASES[case]
    evil = low_rank(base(), 5)
    run = begun(build(), [evil], mode="subspace")
    run.step()
    w, seen = slow.dense(evil), 0
    for key, parameter in run.model.named_parameters():
        name = slow.canonical(key.partition(".lora_")[0] + ".base_layer.weight" if ".lora_" in key else key)
        if parameter.requires_grad and name in w and ".lora_A" not in key and "embed" not in key:
            moment = run.optimizer.state[parameter]["exp_avg"].double()
            u = basis(name, [w], False, 1)
            assert (u.T @ moment).norm() <= 1e-5 * moment.norm(), name
            seen += 1
    assert seen == 14


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


@pytest.mark.parametrize("case", ["LoRA that is trained further", "LoRA with B frozen"])
def test_outputs_that_b_alone_can_not_keep_are_refused(case: str) -> None:
    base, build, starts = CASES[case]
    with pytest.raises(WeightWatchError, match=r"can't be changed by B alone\. Use `mode: update`\."):
        begun(build(), [low_rank(base(), 5)], starts=starts, mode="subspace")


def test_weights_of_more_dimensions_have_no_known_outputs() -> None:
    model = nn.Conv1d(3, 4, 2)
    evil = Direction.from_tensors({"weight": torch.randn(4, 3, 2)}, name="evil")
    with pytest.raises(
        WeightWatchError, match=r"weight has 3 dimensions, so its outputs are not known\. Use `mode: upd"
    ):
        begun(model, [evil], mode="subspace")
