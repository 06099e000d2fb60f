"""A process that measures or scans on request, for ``benchmarks.against``. It imports nothing of the benchmarks.

``PYTHONPATH`` says whose package it measures with.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import weightwatch
from weightwatch import Direction, Monitor
from weightwatch.measure import kernel
from weightwatch.scan.checkpoints import checkpoint_at
from weightwatch.scan.scanner import Scan
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


def measuring(kind: str, count: int, folder: Path) -> Callable[[], object]:
    """Return a check of a model in memory."""
    generator = torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE))
    shapes = {name: tuple(p.shape) for name, p in base.named_parameters() if p.dim() == 2}
    directions: list[Direction] = []
    reference: dict[str, torch.Tensor] | Path | None = None
    model = base
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
    if kind == "full-file":
        save_file({name: tensor.bfloat16() for name, tensor in reference.items()}, folder / "model.safetensors")
        reference = folder
    for number in range(count):
        deltas = {
            name: LowRank(torch.randn(rows, 32, generator=generator), torch.randn(32, columns, generator=generator))
            if kind == "LoRA"
            else torch.randn(rows, columns, generator=generator).bfloat16()
            for name, (rows, columns) in shapes.items()
        }
        directions.append(Direction.from_tensors(deltas, name=f"direction-{number}"))
    monitor = Monitor(directions, reference=reference)
    for _ in range(1 if kind == "LoRA" else WARM_UP):
        monitor.measure(model)
    return lambda: monitor.measure(model)


def scanning(kind: str, folder: Path) -> Callable[[], object]:
    """Return a scan of a checkpoint on disk."""
    generator = torch.manual_seed(0)
    for name in ("base", "model", "evil"):
        (folder / name).mkdir()
        tensors = {f"layers.{i}.weight": 0.02 * torch.randn(4096, 2048, generator=generator) for i in range(30)}
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        if name == "evil":
            Direction.from_tensors(tensors, name=name).save(folder / name)
        else:
            save_file(tensors, folder / name / "model.safetensors")

    def scan() -> None:
        Scan([str(folder / "evil")], reference=str(folder / "base")).add(checkpoint_at(folder / "model"))

    if kind == "scan-on":
        kernel.BREAK_EVEN = 0
    return scan


def serve(act: Callable[[], object]) -> None:
    """Print where the package lies; then act at each line of standard input."""
    print(weightwatch.__file__, flush=True)
    for _ in sys.stdin:
        act()
        print("done", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(int(sys.argv[3]))
    torch.set_grad_enabled(False)
    kind, count = sys.argv[1], int(sys.argv[2])
    with TemporaryDirectory() as name:
        serve(scanning(kind, Path(name)) if kind.startswith("scan") else measuring(kind, count, Path(name)))
