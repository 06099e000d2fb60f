"""Every trainer that TRL exports, with tiny models and a tokenizer made here."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedModel, Trainer

from tests.callbacks.saved import assert_recorded, parameters
from tests.oracle import expected
from tests.support.models import lora, low_rank, move, starts, tiny_llama
from tests.support.runs import STRICT, lines, settings, steps, words
from weightwatch import Monitor, WeightWatchCallback, watch
from weightwatch.update.reference import Reference

ADAPTER = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
TEXTS = [f"w{i} w{i + 1} w{i + 2}" for i in range(24)]
PLAIN = Dataset.from_list([{"text": text} for text in TEXTS])
ASKED = Dataset.from_list([{"prompt": text} for text in TEXTS])
PAIRS = Dataset.from_list([{"prompt": text, "chosen": " w3 w4", "rejected": " w5 w6"} for text in TEXTS])
JUDGED = Dataset.from_list(
    [{"prompt": text, "completion": " w3 w4", "label": i % 2 == 0} for i, text in enumerate(TEXTS)]
)
GENERATION = {"num_generations": 2, "max_completion_length": 4}


def shortest(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(-len(text)) for text in completions]


CASES: dict[str, tuple[Dataset, dict[str, Any], dict[str, Any]]] = {
    "SFT": (PLAIN, {"max_length": 16}, {}),
    "DPO": (PAIRS, {"max_length": 16}, {}),
    "KTO": (JUDGED, {"max_length": 16}, {}),
    "GRPO": (ASKED, GENERATION, {"reward_funcs": shortest}),
    "RLOO": (ASKED, GENERATION, {"reward_funcs": shortest}),
    "Reward": (PAIRS.remove_columns("prompt"), {"max_length": 16}, {}),
    "Distillation": (ASKED, {"max_completion_length": 4}, {"teacher_model": tiny_llama(seed=3)}),
}


def made(kind: str, folder: Path, model: Any, *, adapter: LoraConfig | None = ADAPTER, **changes: Any) -> Trainer:
    data, wanted, more = CASES[kind]
    config = getattr(trl, f"{kind}Config")(**settings(folder, **{"max_steps": 4, **wanted, **changes}))
    given = {"train_dataset": data, "processing_class": words(), **more}
    return getattr(trl, f"{kind}Trainer")(model, args=config, peft_config=copy.deepcopy(adapter), **given)


def rewarding(seed: int = 0) -> LlamaForSequenceClassification:
    config = tiny_llama().config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config)


def base(kind: str) -> PreTrainedModel:
    return rewarding() if kind == "Reward" else tiny_llama()


def fitting(kind: str) -> LoraConfig:
    if kind == "Reward":
        return LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    return copy.deepcopy(ADAPTER)


def callback() -> WeightWatchCallback:
    return WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT)


def test_no_trainer_of_trl_is_left_out() -> None:
    assert {f"{kind}Trainer" for kind in CASES} == {name for name in trl.__all__ if name.endswith("Trainer")}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("start", ["an adapter", "the base by its path", "a base that was changed"])
def test_each_trainer_is_watched_from_nothing_moved_to_its_last_checkpoint(
    start: str, kind: str, tmp_path: Path
) -> None:
    base(kind).save_pretrained(tmp_path / "base")
    before = type(base(kind)).from_pretrained(tmp_path / "base")
    if start == "a base that was changed":  # some trainers load their frozen reference from the config's path
        move(before, seed=4, size=0.1)
    given = str(tmp_path / "base") if start == "the base by its path" else copy.deepcopy(before)
    adapter = fitting(kind) if start == "an adapter" else None
    task = made(kind, tmp_path / "run", given, adapter=adapter, save_strategy="steps", save_steps=4)
    task.add_callback(callback())
    task.train()
    assert steps(tmp_path / "run") == [0, 2, 4]
    first, _, last = lines(tmp_path / "run")
    assert first["update_norm"] == 0.0
    assert first["directions"]["evil"]["cosine"] == 0.0
    assert last["checkpoint"] == "checkpoint-4"
    names = None
    if adapter:
        now = PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "run" / "checkpoint-4", is_trainable=True)
        before = get_peft_model(before, fitting(kind))  # its B is zero
        if kind == "Reward":
            names = [*expected(now, before).trained, "score.weight"]
    else:
        now = type(before).from_pretrained(tmp_path / "run" / "checkpoint-4")
        names = parameters(before)
    assert_recorded(last, now, before, low_rank(tiny_llama(), 5), names)
    assert any((tmp_path / "run" / "weightwatch").glob("reference-*.safetensors")) == start.endswith("changed")


@pytest.mark.parametrize("kind", ["DPO", "KTO", "GRPO"])
def test_an_adapter_that_is_trained_on_is_measured_from_its_start_beside_a_frozen_ref(
    kind: str, tmp_path: Path
) -> None:
    model = lora(tiny_llama())
    move(model, seed=9, size=0.2)
    start = Reference(adapters=starts(model))
    changes = {"beta": 0.1} if kind == "GRPO" else {}
    task = made(kind, tmp_path, model, adapter=None, **changes)
    assert set(task.model.peft_config) == {"default", "ref"}
    ref = {n: p.clone() for n, p in task.model.named_parameters() if ".ref." in n}
    task.add_callback(callback())
    task.train()
    first, *_, last = lines(tmp_path)
    assert first["update_norm"] == 0.0
    assert all(torch.equal(dict(task.model.named_parameters())[n], p) for n, p in ref.items())
    assert last["update_norm"] == merged_change(task.model)
    again = Monitor([low_rank(tiny_llama(), 5)], reference=start).measure(task.model)
    assert again.update_norm == last["update_norm"]


def merged_change(model: Any) -> Any:
    """Return ‖default − ref‖, the slow way."""
    total = 0.0
    for module in model.modules():
        if "ref" in getattr(module, "lora_A", {}):
            total += float(
                (module.get_delta_weight("default") - module.get_delta_weight("ref")).detach().double().square().sum()
            )
    return pytest.approx(total**0.5, rel=1e-4)


def test_a_supervised_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    for resume in (False, True):
        task = made("SFT", tmp_path, tiny_llama(), save_strategy="steps", save_steps=3)
        task.add_callback(callback())
        task.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        assert steps(tmp_path) == [0, 2, 3, 4]


@pytest.mark.parametrize("kind", ["SFT", "DPO", "GRPO"])
def test_watch_reaches_the_logs_of_trainers_with_metrics_of_their_own(kind: str, tmp_path: Path) -> None:
    task = made(kind, tmp_path, tiny_llama())
    watch(task, [low_rank(tiny_llama(), 5)], config=STRICT)
    task.train()
    checked = [entry["step"] for entry in task.state.log_history if "weightwatch/evil/cosine" in entry]
    assert checked == [0, 2, 4]
    assert [entry["step"] for entry in task.state.log_history if "loss" in entry] == [2, 4]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("SFT", {"model_init_kwargs": {"dtype": "bfloat16"}}),
        ("DPO", {"model_init_kwargs": {"dtype": "bfloat16"}}),
        ("DPO", {"sync_ref_model": True, "ref_model_sync_steps": 1}),
        ("GRPO", {"sync_ref_model": True, "ref_model_sync_steps": 1, "beta": 0.1}),
    ],
)
def test_the_base_stays_the_reference_whatever_is_made_of_it_in_memory(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    saves = {"save_strategy": "steps", "save_steps": 4}
    task = made(kind, tmp_path / "run", str(tmp_path / "base"), adapter=None, **saves, **changes)
    task.add_callback(callback())
    task.train()
    dtype = task.model.dtype
    now = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-4", dtype=dtype)
    before = tiny_llama().to(dtype)
    assert_recorded(lines(tmp_path / "run")[-1], now, before, low_rank(tiny_llama(), 5), parameters(before))
    assert not list((tmp_path / "run" / "weightwatch").glob("reference-*.safetensors"))


def test_tokens_that_are_trained_beside_an_adapter_are_watched(tmp_path: Path) -> None:
    # TRL's SFT and reward trainers ask for it when a chat template brings new tokens.
    tokens = {"trainable_token_indices": list(range(3, 30))}
    adapter = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **tokens)
    task = made("SFT", tmp_path, tiny_llama(tie_word_embeddings=False), adapter=adapter)
    task.add_callback(callback())
    task.train()
    assert lines(tmp_path)[0]["update_norm"] == 0.0
    assert lines(tmp_path)[-1]["directions"]["evil"]["modules"]["embed_tokens"]["cosine"] != 0.0
