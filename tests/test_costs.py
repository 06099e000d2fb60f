import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tests.support.models import lora, low_rank, tiny_llama
from weightwatch import Config, Monitor
from weightwatch.session import Session

WIDTHS = (64, 512)


def wide(width: int) -> nn.Module:
    shape = {"intermediate_size": 2 * width, "num_attention_heads": 4, "num_key_value_heads": 4}
    return tiny_llama(hidden_size=width, num_hidden_layers=1, **shape)


def peak(act: Callable[[], Any]) -> int:
    """Return the most bytes of tensors that a call held at once, beyond those that were there."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        act()
    held = most = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def largest(model: nn.Module) -> int:
    """Return the bytes of the largest weight of a model."""
    return max(p.numel() * 4 for p in model.parameters())


def test_the_yardstick_sees_what_a_naive_check_allocates() -> None:
    model = lora(wide(512))
    held = peak(lambda: model.base_model.model.model.layers[0].mlp.down_proj.get_delta_weight("default"))
    assert held >= 512 * 1024 * 4


def test_a_check_under_lora_holds_no_more_than_the_factors_of_one_layer() -> None:
    for width in WIDTHS:
        base = wide(width)
        direction, model = low_rank(base, 5), lora(base)
        monitor = Monitor([direction])
        monitor.measure(model)
        ranks = 4 + next(iter(direction.deltas.values())).rank  # type: ignore[union-attr]
        factors = 3 * width * ranks * 4
        every = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
        held = peak(lambda monitor=monitor, model=model: monitor.measure(model))  # type: ignore[misc]
        assert held <= 2 * (every + factors) + 100_000
    assert held < largest(base) / 4


def test_what_a_check_holds_grows_with_the_width_and_not_with_its_square() -> None:
    held = {}
    for width in WIDTHS:
        base = wide(width)
        monitor, model = Monitor([low_rank(base, 5)]), lora(base)
        monitor.measure(model)
        held[width] = peak(lambda monitor=monitor, model=model: monitor.measure(model))  # type: ignore[misc]
    assert held[512] <= 1.5 * held[64] * (512 / 64)
    assert held[512] < (512 / 64) ** 2 * held[64] / 4


def test_a_full_check_holds_blocks_and_not_a_copy_of_the_model() -> None:
    model = tiny_llama(vocab_size=60_000)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monitor = Monitor([low_rank(tiny_llama(vocab_size=60_000), 5)], reference=start)
    monitor.measure(model)
    held = peak(lambda: monitor.measure(model))
    assert largest(model) > 7_000_000
    assert held < largest(model)


def test_a_run_keeps_no_tensor_of_its_checks(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    session = Session(
        Monitor([low_rank(tiny_llama(), 5)]), Config(every=1), tmp_path / "weightwatch", tmp_path / "runs"
    )
    session.begin(model, 0)
    session.step_end(model, 1, saves=False, stops=False)
    before = living()
    for step in range(2, 8):
        session.step_end(model, step, saves=False, stops=False)
    assert living() == before
    assert session.last is not None
    assert session.last.step == 7


def living() -> int:
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())
