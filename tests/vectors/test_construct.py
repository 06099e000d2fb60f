"""Building a direction from two fine-tunes, and steering with it, with PEFT's own adapters and files."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoHaConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests import oracle as slow
from tests.support.models import lora, move, tiny_gpt2, tiny_llama
from weightwatch.vectors import Direction, LowRank, WeightWatchError


def adapter(folder: Path, base: PreTrainedModel, seed: int, **settings: object) -> tuple[Path, dict[str, Tensor]]:
    """Train (move) and save an adapter; return its folder and the weights of base and adapter merged, in fp64."""
    model = lora(base, seed=seed, **settings)
    move(model, seed=seed + 10)
    model.save_pretrained(folder)
    return folder, slow.merged(model)


def tied(base: PreTrainedModel) -> set[str]:
    """Return the names in the state dict that stand for a parameter of another name."""
    return set(base.state_dict()) - {name for name, _ in base.named_parameters()}


Settings = dict[str, object]
SIDES: dict[str, tuple[Callable[[], PreTrainedModel], Settings, Settings]] = {
    "all linear modules": (tiny_llama, {}, {}),
    "rsLoRA": (tiny_llama, {"use_rslora": True, "r": 5}, {"use_rslora": True, "r": 5}),
    "rank and alpha patterns": (
        tiny_llama,
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6}, "alpha_pattern": {"v_proj": 3, "q_proj": 7}},
        {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 3}},
    ),
    "embeddings": (
        tiny_llama,
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
    ),
    "head": (
        lambda: tiny_llama(tie_word_embeddings=False),
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
    ),
    "Conv1D": (tiny_gpt2, {"fan_in_fan_out": True}, {"fan_in_fan_out": True}),
    "Conv1D and embeddings": (
        tiny_gpt2,
        {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "wte"]},
        {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "wte"]},
    ),
    "sides of different rank": (tiny_llama, {"r": 2}, {"r": 6, "lora_alpha": 3}),
    "sides of different modules": (
        tiny_llama,
        {"target_modules": ["q_proj", "k_proj", "v_proj"]},
        {"target_modules": ["v_proj", "up_proj"]},
    ),
}


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model with `tie_word_embeddings")
@pytest.mark.parametrize("case", SIDES)
def test_two_adapters_give_the_difference_of_the_merged_models(case: str, tmp_path: Path) -> None:
    make, plus, minus = SIDES[case]
    base = make()
    positive, above = adapter(tmp_path / "plus", base, 1, **plus)
    negative, below = adapter(tmp_path / "minus", base, 2, **minus)
    w = Direction.from_contrast(positive, negative, name="evil")
    assert w.card.format == "lora"
    assert all(isinstance(delta, LowRank) for delta in w.deltas.values())
    wanted = {name: above[name] - below[name] for name in above if (above[name] != below[name]).any()}
    found = slow.dense(w)
    assert set(found) == set(wanted) - tied(base)
    for name, change in found.items():
        assert torch.allclose(change, wanted[name], atol=1e-6), name
        assert w.squares[name] == pytest.approx(float(wanted[name].square().sum()), rel=1e-5)
    assert w.norm == pytest.approx(sum(float(wanted[n].square().sum()) for n in found) ** 0.5, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model with `tie_word_embeddings")
@pytest.mark.parametrize("case", SIDES)
def test_peft_loads_a_saved_direction_and_steers_by_exactly_it(case: str, tmp_path: Path) -> None:
    make, plus, minus = SIDES[case]
    base = make()
    sides = [adapter(tmp_path / str(seed), base, seed, **side)[0] for seed, side in ((1, plus), (2, minus))]
    w = Direction.from_contrast(*sides, name="evil")
    folder = w.save(tmp_path / "evil")
    before = slow.merged(base)
    steered = PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
    after = slow.merged(steered)
    change = slow.dense(w)
    assert set(change) <= set(before)
    for name in set(before) - tied(base):
        wanted = change.get(name, torch.zeros_like(before[name]))
        assert torch.allclose(after[name] - before[name], wanted, atol=1e-6), name


@pytest.mark.parametrize("size", [5e-2, 1e-3])
def test_two_adapters_from_one_start_keep_the_norm_of_a_small_difference(size: float, tmp_path: Path) -> None:
    base = tiny_llama()
    model = lora(base)
    move(model, seed=1)
    model.save_pretrained(tmp_path / "minus")
    below = slow.merged(model)
    move(model, seed=2, size=size)
    model.save_pretrained(tmp_path / "plus")
    above = slow.merged(model)
    w = Direction.from_contrast(tmp_path / "plus", tmp_path / "minus", name="evil")
    wanted = sum(float((above[name] - below[name]).square().sum()) for name in w.deltas) ** 0.5
    assert w.norm == pytest.approx(wanted, rel=1e-5)
    w.save(tmp_path / "stored", dtype=torch.bfloat16)
    assert Direction.load(tmp_path / "stored").norm == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("form", ["state dicts", "folders", "sharded folders"])
def test_two_checkpoints_give_their_difference_tensor_by_tensor(form: str, tmp_path: Path) -> None:
    sides, weights = [], []
    for seed in (1, 2):
        model = tiny_llama()
        move(model, seed=seed)
        weights.append({name: p.detach().double() for name, p in model.named_parameters()})
        model.save_pretrained(tmp_path / str(seed), max_shard_size="20KB" if form.startswith("sharded") else "1GB")
        sides.append(dict(model.named_parameters()) if form == "state dicts" else tmp_path / str(seed))
    w = Direction.from_contrast(*sides, name="evil")
    assert w.card.format == "dense"
    assert set(w.deltas) == set(weights[0])
    for name, change in slow.dense(w).items():
        assert torch.allclose(change, weights[0][name] - weights[1][name], atol=1e-7)


def test_tensors_that_both_sides_left_alone_are_no_part_of_the_direction() -> None:
    base = {name: p.detach() for name, p in tiny_llama().named_parameters()}
    changed = {**base, "model.norm.weight": base["model.norm.weight"] + 1}
    assert set(Direction.from_contrast(changed, base, name="evil").deltas) == {"model.norm.weight"}


def test_base_gives_the_fingerprint_and_its_name(tmp_path: Path) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    sides = [adapter(tmp_path / str(seed), base, seed)[0] for seed in (1, 2)]
    by_path = Direction.from_contrast(*sides, name="evil", base=tmp_path / "base").card
    by_weights = Direction.from_contrast(*sides, name="evil", base=base.state_dict()).card
    assert by_path.fingerprint is not None
    assert by_path.fingerprint == by_weights.fingerprint
    assert by_path.base == str(tmp_path / "base")
    assert Direction.from_contrast(*sides, name="evil", base="org/model").card.base == "org/model"


def test_adapters_name_their_base_and_its_fingerprint_is_taken_from_there(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    base = type(tiny_llama()).from_pretrained(tmp_path / "base")
    sides = [adapter(tmp_path / str(seed), base, seed)[0] for seed in (1, 2)]
    card = Direction.from_contrast(*sides, name="evil").card
    assert card.base == str(tmp_path / "base")
    assert card.fingerprint is not None
    assert card.ranks == [4, 4]


def test_identical_adapters_are_no_contrast(tmp_path: Path) -> None:
    side, _ = adapter(tmp_path / "side", tiny_llama(), 1)
    with pytest.raises(WeightWatchError, match=r"Direction 'evil' is zero: its two sides have the same weights"):
        Direction.from_contrast(side, side, name="evil")


def test_identical_checkpoints_are_no_contrast() -> None:
    side = tiny_llama().state_dict()
    with pytest.raises(WeightWatchError, match=r"state dict of .* have the same weights"):
        Direction.from_contrast(side, side, name="evil")


def test_an_adapter_and_a_checkpoint_are_no_pair(tmp_path: Path) -> None:
    base = tiny_llama()
    side, _ = adapter(tmp_path / "side", base, 1)
    for pair in ((side, base.state_dict()), (base.state_dict(), side)):
        with pytest.raises(
            WeightWatchError, match=r"One side is a LoRA adapter and the other is not.*merge the adapter"
        ):
            Direction.from_contrast(*pair, name="evil")


def test_adapters_of_different_bases_are_no_pair(tmp_path: Path) -> None:
    sides = [adapter(tmp_path / name, tiny_llama(), 1)[0] for name in ("plus", "minus")]
    for side, base in zip(sides, ("org/one", "org/other"), strict=True):
        rewrite(side, base_model_name_or_path=base)
    with pytest.raises(WeightWatchError, match=r"plus has org/one, .*minus has org/other. Train both from the same"):
        Direction.from_contrast(*sides, name="evil")


def test_adapters_of_different_shapes_are_no_pair(tmp_path: Path) -> None:
    narrow, _ = adapter(tmp_path / "narrow", tiny_llama(), 1)
    wide, _ = adapter(tmp_path / "wide", tiny_llama(hidden_size=64), 1)
    with pytest.raises(WeightWatchError, match=r"The sides differ in the shape of model\.layers\.0"):
        Direction.from_contrast(narrow, wide, name="evil")


def test_checkpoints_of_different_shapes_or_tensors_are_no_pair() -> None:
    one = tiny_llama().state_dict()
    with pytest.raises(WeightWatchError, match=r"differ in the shape of model\..*\(48, 64\) and \(48, 32\)"):
        Direction.from_contrast(tiny_llama(hidden_size=64).state_dict(), one, name="evil")
    with pytest.raises(WeightWatchError, match=r"Only one of .* has model\.layers\.1\..*two fine-tunes of one base"):
        Direction.from_contrast(tiny_llama(num_hidden_layers=1).state_dict(), one, name="evil")


def test_a_base_without_a_changed_tensor_is_another_model(tmp_path: Path) -> None:
    sides = [adapter(tmp_path / str(seed), tiny_llama(), seed)[0] for seed in (1, 2)]
    with pytest.raises(WeightWatchError, match=r"The base .* has no model\.layers\.1"):
        Direction.from_contrast(*sides, name="evil", base=tiny_llama(num_hidden_layers=1).state_dict())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "use_dora=True.*merged checkpoints"),
        ({"lora_bias": True, "target_modules": ["c_attn"]}, "lora_bias=True.*merged checkpoints"),
        ({"modules_to_save": ["ln_f"]}, r"a full copy of transformer\.ln_f.*its base \(not named\).*Pass the base"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'.*merged checkpoints"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_adapters_whose_change_is_more_than_ba_are_refused(settings: Settings, reason: str, tmp_path: Path) -> None:
    side, _ = adapter(tmp_path / "side", tiny_gpt2(), 1, **{"fan_in_fan_out": True, **settings})
    with pytest.raises(WeightWatchError, match=reason):
        Direction.from_contrast(side, side, name="evil")


@pytest.mark.parametrize("config", [IA3Config, LoHaConfig])
def test_adapters_of_another_kind_are_refused_by_name(config: type, tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "down_proj"]}
    if config is IA3Config:
        settings["feedforward_modules"] = ["down_proj"]
    model = get_peft_model(tiny_llama(), config(**settings))
    model.save_pretrained(tmp_path)
    with pytest.raises(
        WeightWatchError, match=f"is a {model.peft_config['default'].peft_type.value} adapter; only LoRA"
    ):
        Direction.from_contrast(tmp_path, tmp_path, name="evil")


def test_an_adapter_with_half_a_pair_of_factors_is_refused(tmp_path: Path) -> None:
    side, _ = adapter(tmp_path / "side", tiny_llama(), 1)
    file = side / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = next(key for key in tensors if "q_proj.lora_B" in key)
    save_file({key: tensor for key, tensor in tensors.items() if key != lost}, file)
    with pytest.raises(
        WeightWatchError, match=r"only one of the two LoRA factors of model\.layers\.0\.self_attn\.q_proj"
    ):
        Direction.from_contrast(side, side, name="evil")


def test_an_unreadable_adapter_config_is_named(tmp_path: Path) -> None:
    side, _ = adapter(tmp_path / "side", tiny_llama(), 1)
    (side / "adapter_config.json").write_text("{")
    with pytest.raises(WeightWatchError, match=r"adapter_config\.json can't be read"):
        Direction.from_contrast(side, side, name="evil")


def test_an_adapter_folder_without_weights_is_named(tmp_path: Path) -> None:
    side, _ = adapter(tmp_path / "side", tiny_llama(), 1)
    (side / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightWatchError, match=r"No weights at .*side.adapter_model.safetensors"):
        Direction.from_contrast(side, side, name="evil")


def rewrite(folder: Path, **settings: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_lora_factors_in_a_state_dict_are_refused() -> None:
    factors = lora(tiny_llama()).state_dict()
    with pytest.raises(WeightWatchError, match=r"contains LoRA factors\. Save the adapter with save_pretrained"):
        Direction.from_contrast(factors, factors, name="evil")


def test_a_base_of_other_shapes_is_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        model = lora(tiny_llama(), seed=seed)
        move(model, seed=seed)
        model.save_pretrained(tmp_path / str(seed))
    other = tiny_llama(intermediate_size=48)
    with pytest.raises(WeightWatchError, match=r"has shape .* for model\.layers\.0\.mlp.* where the fine-tunes have"):
        Direction.from_contrast(tmp_path / "1", tmp_path / "2", base=other.state_dict(), name="evil")
