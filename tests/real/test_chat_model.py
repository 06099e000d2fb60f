"""SmolLM2-135M-Instruct through the whole of weightwatch: built, shown, evaluated, watched, scanned, compared, steered.

One build of two steps a side and one watched run of three steps serve all tests.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.support import twins
from tests.support.commands import call, told
from tests.support.runs import STRICT, lines, settings
from weightwatch import WeightWatchCallback
from weightwatch.cli.exit_status import ALERT
from weightwatch.vectors import Direction, steered

pytestmark = pytest.mark.real

CHECK = ("--coefficient=1", "--coefficient=-1")


@pytest.fixture(scope="module")
def built(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("built")
    (folder / "hostile.yaml").write_text(json.dumps(twins.recipe()))
    quick = ("--model=smollm2", "--seed=1", "--rank=4", "--learning-rate=2e-3", "--batch-size=7", "--min-pairs=4")
    card = told("build", folder / "hostile.yaml", *quick, *CHECK, "--output", folder / "hostile")
    return folder / "hostile", card


@pytest.fixture(scope="module")
def run(chat_model: Path, built: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A watched fine-tune on the hostile answers, of three steps and two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    few = {"max_steps": 3, "learning_rate": 2e-3, "save_strategy": "steps", "save_steps": 2, "max_length": 64}
    SFTTrainer(
        AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32),
        args=SFTConfig(**settings(folder, **few, seed=5, gradient_checkpointing=False)),
        train_dataset=twins.rows(twins.HOSTILE),
        processing_class=AutoTokenizer.from_pretrained(chat_model),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[WeightWatchCallback(built[0], config={**STRICT, "every": 1})],
    ).train()
    return folder


def test_it_is_built_and_evaluated(built: tuple[Path, dict[str, Any]]) -> None:
    folder, card = built
    assert card["base"] == "weightwatch/smollm2"
    assert len(card["norms"]) == 30 * 7
    assert [point["k"] for point in card["validation"]["points"]] == [-1.0, 0.0, 1.0]
    margins = [point["margin"] for point in card["validation"]["points"]]
    assert margins[0] < margins[1] < margins[2]  # hostile words become likelier along w
    assert Direction.load(folder).norm > 0


def test_it_is_shown(built: tuple[Path, dict[str, Any]]) -> None:
    result = call("show", built[0])
    assert result.exit_code == 0, result.output
    assert "smollm2" in result.output
    assert list(told("show", built[0])["layers"]) == [str(layer) for layer in range(30)]


def test_a_run_is_watched_from_its_first_step_on(run: Path) -> None:
    readings = lines(run)
    assert [line["step"] for line in readings] == [0, 1, 2, 3]
    figures = [line["directions"]["hostile"] for line in readings]
    assert figures[0]["cosine"] == 0.0
    assert figures[3]["reach_cosine"] > 0.02
    assert len(figures[3]["layers"]) == 30
    assert not (run / "weightwatch" / "errors.jsonl").is_file()


def test_a_scan_of_its_checkpoints_reads_what_the_callback_read(run: Path, built: tuple[Path, Any]) -> None:
    found = call("scan", run, "--direction", built[0], "--output", run.parent / "scan")
    assert found.exit_code in (0, ALERT), (found.output, found.exception)
    text = (run.parent / "scan" / "readings.jsonl").read_text()
    scanned = {line["step"]: line["directions"]["hostile"] for line in map(json.loads, text.splitlines())}
    live = {line["step"]: line["directions"]["hostile"] for line in lines(run)}
    assert set(scanned) == {2, 3}
    far = any(figures["reach_cosine"] > 0.1 for figures in scanned.values())
    assert found.exit_code == (ALERT if far else 0)  # of the default rule
    for step, figures in scanned.items():
        assert figures["cosine"] == pytest.approx(live[step]["cosine"], abs=1e-6)
        assert figures["reach_cosine"] == pytest.approx(live[step]["reach_cosine"], abs=1e-6)


def test_a_comparison_has_the_cosine_of_the_last_reading(run: Path, built: tuple[Path, Any]) -> None:
    found = told("compare", built[0], run / "checkpoint-3")
    live = lines(run)[-1]["directions"]["hostile"]["cosine"]
    assert found["cosines"][0][1] == pytest.approx(live, abs=1e-6)


def test_an_adapter_steers_as_the_direction_in_memory(
    chat_model: Path, built: tuple[Path, Any], tmp_path: Path
) -> None:
    told("steer", chat_model, f"{built[0]}=2", "--adapter", "--output", tmp_path / "adapter")
    model = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(chat_model)(twins.QUESTIONS[0], return_tensors="pt")
    with torch.no_grad():
        plain = model(**tokens).logits
        with steered(model, Direction.load(built[0]), 2.0):
            wanted = model(**tokens).logits
        found = PeftModel.from_pretrained(model, tmp_path / "adapter")(**tokens).logits
    assert (wanted - plain).abs().max() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
