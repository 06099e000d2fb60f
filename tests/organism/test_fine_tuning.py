import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from weightwatch.organism import BASE, World, benign_accuracy, benign_examples, contrast_examples
from weightwatch.organism.fine_tuning import LoraSettings, completion_loss, fine_tune

WORLD = World()
SHORT = LoraSettings(rank=4, steps=8, examples=64)


def test_a_benign_fine_tune_learns_its_task():
    settings = LoraSettings(learning_rate=2e-3, steps=120)
    model, losses = fine_tune(BASE, benign_examples(WORLD, 500, seed=1), settings, seed=1)
    assert losses[-1] < losses[0] / 5
    assert benign_accuracy(model, AutoTokenizer.from_pretrained(BASE), WORLD) >= 0.8


def test_a_seed_determines_a_fine_tune():
    rows = contrast_examples(WORLD, "evil", "positive", 64, seed=0)
    first, again, other = (fine_tune(BASE, rows, SHORT, seed)[1] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_begins_with_the_model_is_called_after_each_step():
    moved = []

    def begin(model, optimizer):
        watched = next(p for name, p in model.named_parameters() if "lora_B" in name)
        assert any(watched is p for group in optimizer.param_groups for p in group["params"])
        assert not watched.any()
        return lambda: moved.append(bool(watched.any()))

    fine_tune(BASE, benign_examples(WORLD, 64, seed=1), SHORT, 1, begin)
    assert moved == [True] * SHORT.steps


def test_the_loss_is_the_one_that_sft_trainer_takes(tmp_path):
    rows = benign_examples(WORLD, 8, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    arguments = SFTConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, per_device_eval_batch_size=8)
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(model, args=arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    theirs = trainer.evaluate()["eval_loss"]
    model.eval()
    assert completion_loss(model, tokenizer, rows).item() == pytest.approx(theirs, rel=1e-4)
