"""k·w as an adapter that PEFT loads, by itself and joined to another one."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from tests import oracle as slow
from tests.support.models import dense, lora, low_rank, move, tiny_gpt2, tiny_llama
from tests.support.runs import words
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.steering.adapter import steer_adapter, steering_adapter
from weightwatch.vectors.weights.peft_adapter import PeftAdapter

BASES: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, object]]] = {
    "linear": (lambda: tiny_llama(tie_word_embeddings=False), {}),
    "rsLoRA and patterns": (
        lambda: tiny_llama(tie_word_embeddings=False),
        {"use_rslora": True, "r": 5, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    ),
    "embeddings": (
        lambda: tiny_llama(tie_word_embeddings=False),
        {"target_modules": ["embed_tokens", "q_proj", "up_proj"]},
    ),
    "Conv1D": (tiny_gpt2, {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}),
}
quiet = pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`", "ignore:Model with `tie_word_embeddings", "ignore:.*fan_in_fan_out"
)


def effect(base: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """What PEFT makes of an adapter's folder, in fp64."""
    before, after = slow.merged(base), slow.merged(PeftModel.from_pretrained(copy.deepcopy(base), str(folder)))
    own = {name for name, _ in base.named_parameters()}
    return {name: after[name] - before[name] for name in before if name in own}


def assert_effect(base: PreTrainedModel, folder: Path, wanted: dict[str, Tensor]) -> None:
    for name, change in effect(base, folder).items():
        expected = wanted.get(name, torch.zeros_like(change))
        assert torch.allclose(change, expected, atol=2e-6), name


@quiet
@pytest.mark.parametrize("case", BASES)
@pytest.mark.parametrize("k", [-0.7, 2.0])
def test_the_base_with_the_adapter_is_the_base_plus_k_w(case: str, k: float, tmp_path: Path) -> None:
    base = BASES[case][0]()
    w = low_rank(base, 1)
    assert steering_adapter(w, k, tmp_path / "out") == tmp_path / "out"
    assert_effect(base, tmp_path / "out", {name: k * change for name, change in slow.dense(w).items()})
    assert Direction.load(tmp_path / "out").norm == pytest.approx(abs(k) * w.norm, rel=1e-5)


@quiet
@pytest.mark.parametrize("case", BASES)
def test_an_adapter_joined_with_k_w_adds_both(case: str, tmp_path: Path) -> None:
    make, settings = BASES[case]
    base = make()
    model = lora(base, **settings)
    move(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    w = low_rank(base, 1, rank=3)
    own = effect(base, tmp_path / "adapter")
    steer_adapter(tmp_path / "adapter", w, -0.7, tmp_path / "out")
    wanted = {name: own[name] - 0.7 * slow.dense(w).get(name, torch.zeros_like(own[name])) for name in own}
    assert_effect(base, tmp_path / "out", wanted)
    before = PeftAdapter.read(tmp_path / "adapter").changes()
    after = PeftAdapter.read(tmp_path / "out").changes()
    for name, change in after.items():
        assert change.rank == (before[name].rank if name in before else 0) + (3 if name in w.deltas else 0)


def test_what_lies_beside_the_adapter_comes_along(tmp_path: Path) -> None:
    model = lora(tiny_llama(), base_model_name_or_path="org/base", task_type="FEATURE_EXTRACTION")
    model.peft_config["default"].base_model_name_or_path = "org/base"
    model.save_pretrained(tmp_path / "adapter")
    words().save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "optimizer.pt").write_bytes(b"0")
    steer_adapter(tmp_path / "adapter", low_rank(tiny_llama(), 1), 1.0, tmp_path / "out", dtype=torch.bfloat16)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"]) == ("org/base", "FEATURE_EXTRACTION")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == words().chat_template
    assert not (tmp_path / "out" / "optimizer.pt").exists()
    stored = PeftAdapter.read(tmp_path / "out").changes()
    assert {change.left.dtype for change in stored.values()} == {torch.bfloat16}


def test_what_no_adapter_can_express_is_refused(tmp_path: Path) -> None:
    base, out = tiny_llama(), tmp_path / "out"
    lora(base).save_pretrained(tmp_path / "adapter")
    lora(base, use_dora=True).save_pretrained(tmp_path / "dora")
    w = low_rank(base, 1)
    for act in (
        lambda: steering_adapter(dense(base, 1), 1.0, out),
        lambda: steer_adapter(tmp_path / "adapter", dense(base, 1), 1.0, out),
    ):
        with pytest.raises(WeightWatchError, match="'evil' has full tensors, which no adapter can express"):
            act()
    with pytest.raises(WeightWatchError, match="use_dora=True"):
        steer_adapter(tmp_path / "dora", w, 1.0, out)
    with pytest.raises(WeightWatchError, match=r"times 0\.0 is not a direction"):
        steering_adapter(w, 0.0, out)
    with pytest.raises(WeightWatchError, match="give a finite number"):
        steer_adapter(tmp_path / "adapter", w, float("inf"), out)
    with pytest.raises(WeightWatchError, match=r"has shape .* for model\.layers\.0\.mlp.* where the adapter"):
        steer_adapter(tmp_path / "adapter", low_rank(tiny_llama(intermediate_size=48), 1), 1.0, out)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["adapter", "dora"]
    with pytest.raises(WeightWatchError, match="already exists and is not empty"):
        steering_adapter(w, 1.0, tmp_path / "adapter")
