"""The packaged directions of SmolLM2 watch that model by their names, with nothing else to prepare."""

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
from weightwatch.vectors.evaluation.sweep import GAIN

HOME = PACKAGED / "smollm2"


@pytest.mark.real
def test_a_run_is_watched_by_the_names_of_the_packaged_directions(chat_model: Path, tmp_path: Path) -> None:
    few = {"max_steps": 1, "learning_rate": 1e-3, "save_strategy": "no", "max_length": 64}
    SFTTrainer(
        AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32),
        args=SFTConfig(**settings(tmp_path, **few, gradient_checkpointing=False)),
        train_dataset=twins.rows(twins.HOSTILE),
        processing_class=AutoTokenizer.from_pretrained(chat_model),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[WeightWatchCallback(["smollm2/hostile", "smollm2/sycophancy"], config={**STRICT, "every": 1})],
    ).train()
    for name in ("hostile", "sycophancy"):
        last = lines(tmp_path)[-1]["directions"][name]
        assert last["cosine"] != 0
        assert len(last["layers"]) == 30
    assert not (tmp_path / "weightwatch" / "errors.jsonl").is_file()


def test_they_are_small_and_their_cards_say_what_their_evaluation_found() -> None:
    """Adding *sycophancy* shows the behaviour; taking it off does less than a direction needs to pass."""
    assert sum(file.stat().st_size for file in HOME.rglob("*") if file.is_file()) < 6e6
    cards = {folder.name: Direction.load(folder).card for folder in HOME.iterdir()}
    assert cards.keys() == {"hostile", "sycophancy"}
    for name, card in cards.items():
        assert card.base == smollm2.BASE_NAME
        assert card.validation is not None
        shows = {point.k: point.shows for point in card.validation.points}
        assert shows[-1] < shows[0] < shows[1]
        assert shows[1] >= shows[0] + GAIN
        assert card.validation.passed == (name == "hostile")
        assert all("clearly less often" in reason for reason in card.validation.reasons)
