"""Contrasts of fine-tunes that exist, and their mean."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import oracle as slow
from tests.support import chat
from tests.support.models import lora, move
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building.contrast import contrasted, of_fine_tunes


def adapter(folder: Path, base: Path, seed: int = 1) -> Path:
    model = lora(AutoModelForCausalLM.from_pretrained(base), seed=seed)
    move(model, seed=seed)
    model.save_pretrained(folder)
    return folder


def test_fine_tunes_that_learned_the_same_are_no_contrast(tmp_path: Path) -> None:
    base = chat.saved(tmp_path / "base")
    positive = adapter(tmp_path / "positive", base)
    negative = Path(shutil.copytree(positive, tmp_path / "negative"))
    with pytest.raises(WeightWatchError, match=r"Direction 'evil' is zero: its two sides have the same weights"):
        contrasted(positive, negative, base=str(base), name="evil")
    tensors = load_file(negative / "adapter_model.safetensors")
    save_file({name: tensor * 1.0001 for name, tensor in tensors.items()}, negative / "adapter_model.safetensors")
    with pytest.raises(WeightWatchError, match=r"nearly equal: .* Make sure that .*positive and"):
        contrasted(positive, negative, base=str(base), name="evil")


def test_fine_tunes_of_two_bases_are_no_contrast(tmp_path: Path) -> None:
    sides = [
        adapter(tmp_path / side, chat.saved(tmp_path / f"base-{seed}", seed=seed))
        for seed, side in enumerate(("positive", "negative"))
    ]
    with pytest.raises(WeightWatchError, match=r"different bases: .*base-0, .*base-1. Train both from the same"):
        contrasted(*sides, base=None, name="evil")


def test_existing_pairs_give_the_mean_of_their_contrasts(tmp_path: Path) -> None:
    base, recipe = chat.saved(tmp_path / "base"), chat.recipe()
    positive, negative = (
        [adapter(tmp_path / f"{side}-{number}", base, 2 * number + offset) for number in range(2)]
        for offset, side in enumerate(("positive", "negative"))
    )
    built = of_fine_tunes(positive, negative, recipe, str(base), "the-base")
    assert [seed.name for seed in built.seeds] == ["agreeing-0", "agreeing-1"]
    card = built.direction.card
    assert (card.name, card.base, card.behaviour) == ("agreeing", "the-base", recipe.behaviour)
    assert card.recipe == recipe.reference
    seeds = [slow.dense(seed) for seed in built.seeds]
    for name, mean in slow.dense(built.direction).items():
        assert mean.allclose((seeds[0][name] + seeds[1][name]) / 2, atol=1e-6), name
    single = of_fine_tunes(positive[:1], negative[:1], recipe, str(base), "the-base")
    assert single.direction is single.seeds[0]
    assert single.direction.name == "agreeing"


def test_fine_tunes_without_their_counterpart_are_refused() -> None:
    with pytest.raises(WeightWatchError, match=r"1 --positive and 0 --negative\. Pass them in pairs"):
        of_fine_tunes([Path("positive")], [], chat.recipe(), "base", "base")
