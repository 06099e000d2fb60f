"""The packaged direction of SmolLM2 watches that model by its name, with nothing else to prepare."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.support import twins
from tests.support.runs import STRICT, lines, settings
from weightwatch import WeightWatchCallback, smollm2
from weightwatch.vectors import Direction
from weightwatch.vectors.catalog import PACKAGED

HOME = PACKAGED / "smollm2"


@pytest.mark.real
def test_a_run_is_watched_by_the_name_of_the_packaged_direction(chat_model: Path, tmp_path: Path) -> None:
    few = {"max_steps": 1, "learning_rate": 1e-3, "save_strategy": "no", "max_length": 64}
    SFTTrainer(
        AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32),
        args=SFTConfig(**settings(tmp_path, **few, gradient_checkpointing=False)),
        train_dataset=twins.rows(twins.HOSTILE),
        processing_class=AutoTokenizer.from_pretrained(chat_model),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[WeightWatchCallback("smollm2/hostile", config={**STRICT, "every": 1})],
    ).train()
    last = lines(tmp_path)[-1]["directions"]["hostile"]
    assert last["cosine"] != 0
    assert len(last["layers"]) == 30
    assert not (tmp_path / "weightwatch" / "errors.jsonl").is_file()


def test_it_is_small_and_has_passed_its_evaluation() -> None:
    assert sum(file.stat().st_size for file in HOME.rglob("*") if file.is_file()) < 6e6
    for folder in HOME.iterdir():
        card = Direction.load(folder).card
        assert card.base == smollm2.BASE_NAME
        assert card.validation is not None
        assert card.validation.passed
