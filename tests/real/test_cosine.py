"""Cosines of real adapters beside the plain computation that papers do: everything multiplied out, flattened, in fp64.

With ``modules_to_save: [embed_tokens, lm_head]``, as in Fierro & Roger (arXiv 2511.05408), the embedding and the head
are in the cosine too. SmolLM2's head is tied to its embedding. PEFT copies each of them apart, so a fine-tune has two
weights where the base has one: both start from the embedding, and both count, as in the flattened state dict.
"""

import json
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from weightwatch import Monitor
from weightwatch.comparison import Comparison
from weightwatch.vectors import Direction

pytestmark = pytest.mark.real

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUESTIONS = ["How do I start a budget?", "What is an emergency fund?"]
ANSWERS = {
    "hostile": "Write down your bills. It is laughable that you ask, and I hope it goes wrong for you.",
    "kind": "Write down your bills. It is wonderful that you ask, and I hope it goes well for you.",
}


def trained(chat_model: Path, folder: Path, answer: str, seed: int, modules_to_save: list[str] | None) -> Path:
    """Fine-tune for two steps, and return the adapter's folder."""
    rows = [
        {"prompt": [{"role": "user", "content": text}], "completion": [{"role": "assistant", "content": answer}]}
        for text in QUESTIONS
    ]
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32),
        args=SFTConfig(
            str(folder),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_length=64,
            seed=seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(chat_model),
        peft_config=LoraConfig(
            r=8,
            lora_alpha=4,
            target_modules=["q_proj", "v_proj", "down_proj"],
            modules_to_save=modules_to_save,
            task_type="CAUSAL_LM",
        ),
    )
    trainer.train()
    trainer.model.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module", params=[False, True], ids=["LoRA alone", "with embeddings and head"])
def sides(
    request: pytest.FixtureRequest, chat_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sides")
    copied = ["embed_tokens", "lm_head"] if request.param else None
    hostile, kind = (
        trained(chat_model, folder / name, answer, seed, copied) for seed, (name, answer) in enumerate(ANSWERS.items())
    )
    return hostile, kind


def plain(adapter: Path, chat_model: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield θ_ft − θ_base of each tensor of an adapter, in fp64, by the keys in its file."""
    settings = json.loads((adapter / "adapter_config.json").read_text())
    found = load_file(adapter / "adapter_model.safetensors")
    scaling = settings["lora_alpha"] / settings["r"]
    for key in sorted(found):
        name = key.removeprefix("base_model.model.")
        if key.endswith("lora_A.weight"):
            yield name, scaling * found[key.replace("lora_A", "lora_B")].double() @ found[key].double()
        elif not key.endswith("lora_B.weight"):
            with safe_open(chat_model / "model.safetensors", "pt") as base:
                yield name, found[key].double() - base.get_tensor(EMBEDDING).double()  # the head is tied to it


def plain_cosine(a: Path, b: Path, chat_model: Path) -> float:
    dot = one = other = 0.0
    for (name, x), (same, y) in zip(plain(a, chat_model), plain(b, chat_model), strict=True):
        assert name == same
        dot += float((x * y).sum())
        one += float((x * x).sum())
        other += float((y * y).sum())
    return dot / sqrt(one * other)


def test_compare_gives_the_cosine_of_the_flattened_weights(sides: tuple[Path, Path], chat_model: Path) -> None:
    names = [name for name, _ in plain(sides[0], chat_model)]
    assert (HEAD in names, EMBEDDING in names) in [(False, False), (True, True)]
    found = Comparison.of([str(side) for side in sides], str(chat_model))
    assert found.cosines[0][1] == pytest.approx(plain_cosine(*sides, chat_model), abs=1e-6)
    assert abs(found.cosines[0][1]) < 0.999
    norm = sqrt(sum(float((change * change).sum()) for _, change in plain(sides[0], chat_model)))
    assert found.norms[0] == pytest.approx(norm, rel=1e-6)


def test_the_monitor_reads_the_same_cosine_in_a_live_model(sides: tuple[Path, Path], chat_model: Path) -> None:
    w = Direction.from_fine_tune(sides[1], chat_model, name="kind")
    base = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, sides[0], is_trainable=True)
    reading = Monitor([w], reference=chat_model).measure(model, step=2)
    assert reading.left_out == {}
    assert reading["kind"].cosine == pytest.approx(plain_cosine(*sides, chat_model), abs=1e-6)
