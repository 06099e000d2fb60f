from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.orientation import transposed

WIDE = {"h.0.attn.c_attn.weight": (96, 32), "lm_head.weight": (48, 32)}
SQUARE = {"transformer.h.0.attn.c_proj.weight": (32, 32), "lm_head.weight": (48, 32)}


def gpt2(folder: Path) -> Checkpoint:
    config = GPT2Config(vocab_size=48, n_positions=8, n_embd=32, n_layer=1, n_head=2, tie_word_embeddings=False)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return Checkpoint(folder)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("names", [["a.c_fc.weight", "a.c_proj.weight"], ["a.q_proj.weight", "a.o_proj.weight"]])
def test_where_all_modules_are_of_one_kind_the_flag_counts(names: list[str], flag: bool) -> None:
    products = dict.fromkeys(names, (8, 8))
    assert transposed(products, flag, None, None, "here") == (set(names) if flag else set())


@pytest.mark.parametrize("flag", [True, False])
def test_where_both_kinds_are_adapted_the_shapes_of_the_base_tell(tmp_path: Path, flag: bool) -> None:
    save_file(
        {"h.0.attn.c_attn.weight": torch.ones(32, 96), "lm_head.weight": torch.ones(48, 32)},
        tmp_path / "model.safetensors",
    )
    base = Checkpoint(tmp_path)
    assert transposed(WIDE, flag, base, None, "here") == {"h.0.attn.c_attn.weight"}
    assert transposed(WIDE, flag, None, str(tmp_path), "here") == {"h.0.attn.c_attn.weight"}


@pytest.mark.parametrize("flag", [True, False])
def test_a_shape_wins_over_a_flag_that_it_contradicts(tmp_path: Path, flag: bool) -> None:
    save_file({"mine.weight": torch.ones(2, 3), "yours.weight": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    products = {"mine.weight": (3, 2), "yours.weight": (3, 2)}
    assert transposed(products, flag, Checkpoint(tmp_path), None, "here") == {"mine.weight"}


@pytest.mark.parametrize("flag", [True, False])
def test_of_a_square_weight_the_class_of_its_module_tells(tmp_path: Path, flag: bool) -> None:
    assert transposed(SQUARE, flag, gpt2(tmp_path), None, "here") == {"transformer.h.0.attn.c_proj.weight"}


def test_what_nothing_tells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"here adapts both linear modules and Conv1D.*of transformer\.h\.0"):
        transposed(SQUARE, False, None, "org/not-here", "here")
    base = gpt2(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightWatchError, match="pass the folder of the base"):
        transposed(SQUARE, False, base, None, "here")
