"""Tiny real models (a Llama with grouped queries and tied embeddings, a GPT-2 with Conv1D), adapters and directions."""

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from weightwatch.update.model_view import ModelView
from weightwatch.update.peft import adapters
from weightwatch.vectors import Direction, LowRank


def tiny_llama(seed: int = 0, **settings: object) -> LlamaForCausalLM:
    config = {
        "vocab_size": 48,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**config, **settings}))


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=32))


def lora(base: PreTrainedModel, seed: int = 1, **settings: object) -> PeftModel:
    """Put a LoRA adapter on a copy of a base."""
    torch.manual_seed(seed)
    config = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    return get_peft_model(copy.deepcopy(base), LoraConfig(**config))


@torch.no_grad()
def move(model: nn.Module, seed: int, size: float = 0.05) -> None:
    """Move every trained parameter by noise of a size relative to it (of that size where it is zero)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            scale = float(parameter.float().std(correction=0)) or 1.0
            parameter += size * scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def starts(model: nn.Module) -> dict[str, Tensor]:
    """Return what has to be kept of a model's adapters to measure from here."""
    view = ModelView(model)
    return adapters.starts(view.adapters, view.values)


def low_rank(base: nn.Module, seed: int, *, name: str = "evil", rank: int = 3, kind: str = "behaviour") -> Direction:
    """Return a direction in factors on every linear and embedding weight, as LoRA adapters would give it."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for path, module in base.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding | Conv1D) or path.endswith("lm_head"):
            continue
        out, into = module.weight.shape
        turned = not isinstance(module, nn.Linear)
        rows, columns = (into, out) if turned else (out, into)
        deltas[f"{path}.weight"] = LowRank(
            0.1 * torch.randn(rows, rank, generator=generator),
            torch.randn(rank, columns, generator=generator),
            transposed=turned,
            limited="left" if isinstance(module, nn.Embedding) else "right",
        )
    return Direction.from_tensors(deltas, name=name, metadata={"kind": kind})


def dense(base: nn.Module, seed: int, *, name: str = "evil", kind: str = "behaviour") -> Direction:
    """Return a direction of full tensors on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: 0.1 * torch.randn(p.shape, generator=generator) for n, p in base.named_parameters()}
    return Direction.from_tensors(tensors, name=name, metadata={"kind": kind})


def weights_on_disk(folder: Path) -> dict[str, Tensor]:
    """Return the parameters of a saved model in fp64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: p.detach().double() for name, p in model.named_parameters()}
