"""A process that measures on request, for ``benchmarks.against``. It imports nothing of the benchmarks.

``PYTHONPATH`` says whose package it measures with.
"""

import logging
import sys
import warnings

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import weightwatch
from weightwatch import Direction, Monitor
from weightwatch.vectors import LowRank

SHAPE = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "tie_word_embeddings": True,
}
WARM_UP = 15  # checks of a full fine-tune until its kernel is compiled


def serve(kind: str, count: int) -> None:
    """Print where the package lies; then measure at each line of standard input."""
    generator = torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE))
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters() if p.dim() == 2}
    directions, reference, model = [], None, base
    if kind == "LoRA":
        shapes = {name: shape for name, shape in shapes.items() if "_proj" in name}
        model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=generator)
    else:
        reference = {name: p.detach().clone() for name, p in base.named_parameters()}
        for parameter in base.parameters():
            parameter.data.add_(1e-3 * torch.randn(parameter.shape, generator=generator))
    for number in range(count):
        deltas = {
            name: LowRank(torch.randn(rows, 32, generator=generator), torch.randn(32, columns, generator=generator))
            if kind == "LoRA"
            else torch.randn(rows, columns, generator=generator).bfloat16()
            for name, (rows, columns) in shapes.items()
        }
        directions.append(Direction.from_tensors(deltas, name=f"direction-{number}"))
    monitor = Monitor(directions, reference=reference)
    for _ in range(WARM_UP if kind == "full" else 1):
        monitor.measure(model)
    print(weightwatch.__file__, flush=True)
    for _ in sys.stdin:
        monitor.measure(model)
        print("done", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(int(sys.argv[3]))
    torch.set_grad_enabled(False)
    serve(sys.argv[1], int(sys.argv[2]))
