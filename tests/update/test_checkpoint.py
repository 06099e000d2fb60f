"""The update of a checkpoint on disk: the same changes as a live model's."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import oracle as slow
from tests.support.models import lora, move, starts, tiny_llama
from weightwatch.update.change import Streamed
from weightwatch.update.checkpoint import SavedBase, of_adapter, of_weights
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.ranks import ALONE
from weightwatch.update.snapshot import Snapshot, write
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.peft_adapter import PeftAdapter


def saved(folder: Path, **tensors: Tensor) -> Checkpoint:
    """Save tensors, whose names have dots for double underscores."""
    folder.mkdir()
    save_file({name.replace("__", "."): t for name, t in tensors.items()}, folder / "model.safetensors")
    return Checkpoint(folder)


def test_a_full_checkpoint_is_read_box_by_box_beside_its_base(tmp_path: Path) -> None:
    start, now = torch.randn(4, 3), torch.randn(4, 3)
    update = of_weights(saved(tmp_path / "now", a__weight=now), saved(tmp_path / "base", a__weight=start))
    change = update.changes["a.weight"]
    assert isinstance(change, Streamed)
    assert change.shape == (4, 3)
    box = (slice(1, 3), slice(0, 3))
    assert torch.equal(change.now(box), now[box])
    assert torch.equal(change.start(box), start[box])


def test_what_can_not_be_compared_is_left_out_with_the_reason(tmp_path: Path) -> None:
    same = torch.ones(2, 2)
    now = saved(
        tmp_path / "now",
        a=same,
        new=torch.ones(3),
        embed__weight=torch.ones(6, 2),
        quantised=torch.ones(2, 2, dtype=torch.int8),
        rotary_emb__inv_freq=torch.ones(2),
        position_ids=torch.arange(3),
    )
    base = saved(tmp_path / "base", a=same, old=torch.ones(3), embed__weight=torch.ones(4, 2), quantised=same.clone())
    update = of_weights(now, base)
    assert list(update.changes) == ["a"]
    assert update.left_out.keys() == {"new", "old", "embed.weight", "quantised"}
    assert "the vocabulary was resized" in update.left_out["embed.weight"]
    assert "I8" in update.left_out["quantised"]
    assert str(base.path) in update.left_out["new"]
    assert str(now.path) in update.left_out["old"]


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    now = saved(tmp_path / "now", layers__0__weight=torch.ones(2, 2))
    with pytest.raises(WeightWatchError, match=r"θ₀ has shape \(3, 3\) for layers\.0\.weight.*Pass as --reference"):
        of_weights(now, saved(tmp_path / "other", layers__0__weight=torch.ones(3, 3)))
    with pytest.raises(WeightWatchError, match=r"no weight in common.*Pass as --reference"):
        of_weights(now, saved(tmp_path / "stranger", h__0__weight=torch.ones(2, 2)))


def test_what_a_snapshot_does_not_have_was_frozen(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    write(tmp_path / "run", {"weight": ModelView(model).parameters["weight"]}, ALONE)
    now = saved(tmp_path / "now", weight=torch.ones(2, 2), bias=torch.ones(2))
    update = of_weights(now, Snapshot(tmp_path / "run"))
    assert list(update.changes) == ["weight"]
    assert update.left_out == {}


def test_a_tied_head_that_was_saved_twice_counts_once(tmp_path: Path) -> None:
    table = torch.randn(8, 4)
    now = saved(tmp_path / "now", embed_tokens__weight=table, lm_head__weight=table.clone())
    update = of_weights(now, saved(tmp_path / "base", embed_tokens__weight=table + 1))
    assert list(update.changes) == ["embed_tokens.weight"]
    assert update.tied == {"lm_head.weight"}


@pytest.mark.parametrize("continued", [False, True])
def test_a_saved_adapter_changes_the_weights_as_the_live_one(tmp_path: Path, continued: bool) -> None:
    model = lora(tiny_llama(), target_modules=["q_proj", "down_proj"])
    if continued:
        move(model, seed=9)
    begun = starts(model)
    move(model, seed=3)
    model.save_pretrained(tmp_path)
    ours = slow.multiplied_out(of_adapter(PeftAdapter.read(tmp_path), begun).changes)
    live = slow.multiplied_out(Update(ModelView(model), Reference(adapters=begun)))
    assert ours.keys() == live.keys()
    assert all(torch.allclose(ours[name], change, atol=1e-6) for name, change in live.items())


def test_the_base_on_disk_is_read_from_the_first_source_that_has_a_tensor(tmp_path: Path) -> None:
    first = saved(tmp_path / "first", a=torch.arange(4.0).bfloat16())
    second = saved(tmp_path / "second", a=torch.zeros(4), b=torch.ones(2, 2), packed=torch.ones(2, dtype=torch.uint8))
    base = SavedBase(first, second)
    assert base.values("a", torch.tensor([3, 1])).tolist() == [3.0, 1.0]
    assert base.shape("b") == (2, 2)
    assert base.shape("packed") is None
    with pytest.raises(KeyError):
        base.shape("c")


def test_a_tied_head_that_is_not_saved_is_read_as_the_embedding(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    base = SavedBase(Checkpoint(tmp_path))
    assert base.shape("lm_head.weight") == (48, 32)
    assert base.values("lm_head.weight", torch.tensor([40])) == model.lm_head.weight.reshape(-1)[40]
    with pytest.raises(KeyError):
        base.shape("score.weight")
