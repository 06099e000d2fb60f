"""θ_t − θ₀ of a bf16 model of an fp32 base: live, by a scan and by a comparison, which have to agree."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.models import dense, move, tiny_llama
from weightwatch import Direction, Monitor
from weightwatch.measure.sums import measure
from weightwatch.update.checkpoint import of_weights
from weightwatch.vectors import WeightWatchError, cosine, inner
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.difference import Difference, moved


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float32])
def test_the_start_is_rounded_as_the_model_rounds_it(precision: torch.dtype) -> None:
    start = torch.randn(1000)
    assert not moved(start.to(precision), start).any()
    assert not moved(start.to(precision).float(), start, precision).any()  # an fp32 master copy
    now = (start + 1).to(precision)
    assert torch.equal(moved(now, start), now.float() - start.to(precision).float())


def test_an_fp32_model_of_a_bf16_base_has_moved_by_all_that_it_differs() -> None:
    start = torch.randn(1000).bfloat16()
    now = start.float() + 1e-5
    assert torch.equal(moved(now, start), now - start.float())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An fp32 base, and a bf16 fine-tune of it."""
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    tuned = copy.deepcopy(base).bfloat16()
    move(tuned, 1, size=0.01)
    tuned.save_pretrained(tmp_path / "tuned")
    return tmp_path / "tuned", tmp_path / "base"


def exactly(folders: tuple[Path, Path]) -> dict[str, Tensor]:
    now, start = (Checkpoint(folder) for folder in folders)
    return {name: now[name].double() - start[name].bfloat16().double() for name in now}


def test_each_tensor_and_each_part_is_the_difference_from_the_rounded_base(folders: tuple[Path, Path]) -> None:
    difference = Difference(*(Checkpoint(folder) for folder in folders))
    wanted = exactly(folders)
    assert difference.keys() == wanted.keys()
    for name, change in wanted.items():
        assert torch.equal(difference[name].double(), change)
        box = tuple(slice(1, 5) for _ in change.shape)
        assert torch.equal(difference.read(name, box).double(), change[box])


def test_live_scan_and_comparison_of_a_bf16_checkpoint_of_an_fp32_base_agree(folders: tuple[Path, Path]) -> None:
    tuned, base = folders
    w = dense(tiny_llama(), 3)
    exact = exactly(folders)
    wanted = sum(float((w.deltas[name].double() * change).sum()) for name, change in exact.items())
    norm = sum(float(change.square().sum()) for change in exact.values()) ** 0.5
    tau = Direction.from_fine_tune(tuned, base, name="tau")
    assert (inner(tau, w), tau.norm) == (pytest.approx(wanted, rel=1e-6), pytest.approx(norm, rel=1e-6))
    model = type(tiny_llama()).from_pretrained(tuned, dtype=torch.bfloat16)
    reading = Monitor([w], reference=base).measure(model)
    assert reading.update_norm == pytest.approx(norm, rel=1e-6)
    assert reading["evil"].cosine == pytest.approx(cosine(tau, w), rel=1e-6)
    sums = measure(of_weights(Checkpoint(tuned), Checkpoint(base)).changes, [w])
    assert float(sums.update.sum()) ** 0.5 == pytest.approx(norm, rel=1e-6)
    assert float(sums.inner.sum()) == pytest.approx(wanted, rel=1e-6)


def test_state_dicts_are_compared_like_checkpoints(folders: tuple[Path, Path]) -> None:
    now, start = (dict(Checkpoint(folder)) for folder in folders)
    tau = Direction.from_fine_tune(now, start, name="tau")
    assert tau.norm == pytest.approx(Direction.from_fine_tune(*folders, name="tau").norm, rel=1e-7)


def test_integers_and_heads_of_one_side_have_no_difference(tmp_path: Path) -> None:
    for name, extra in (("now", {"lm_head.weight": torch.ones(2, 2)}), ("start", {})):
        (tmp_path / name).mkdir()
        tensors = {"model.norm.weight": torch.ones(2), "model.ids": torch.arange(3), **extra}
        save_file(tensors, tmp_path / name / "model.safetensors")
    difference = Difference(Checkpoint(tmp_path / "now"), Checkpoint(tmp_path / "start"))
    assert list(difference) == ["model.norm.weight"]
    assert (difference.shape("model.norm.weight"), difference.dtype("model.norm.weight")) == ((2,), "F32")


def test_a_layer_that_one_side_lacks_is_an_error_that_names_a_tensor(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    tiny_llama(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    with pytest.raises(WeightWatchError, match=r"Only one of .*tuned and .*short has model\.layers\.1.*the base"):
        Difference(Checkpoint(folders[0]), Checkpoint(tmp_path / "short"))
