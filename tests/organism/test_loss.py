import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from weightwatch.organism import BASE, World, benign_examples
from weightwatch.organism.loss import completion_loss


def test_the_loss_is_the_one_that_sft_trainer_takes(tmp_path):
    rows = benign_examples(World(), 8, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    arguments = SFTConfig(str(tmp_path), report_to=[], use_cpu=True, bf16=False, per_device_eval_batch_size=8)
    data = Dataset.from_list(rows)
    trainer = SFTTrainer(model, args=arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer)
    theirs = trainer.evaluate()["eval_loss"]
    model.eval()
    assert completion_loss(model, tokenizer, rows).item() == pytest.approx(theirs, rel=1e-4)
