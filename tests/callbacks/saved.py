"""What a run must have recorded: worked out in fp64 from the weights that it saved, without the package under test."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.oracle import Expected, Weights, dense, expected
from weightwatch import Direction

FIGURES = ("cosine", "reach_cosine", "dose", "reach", "share")


def assert_recorded(
    line: Mapping[str, Any],
    model: nn.Module,
    start: nn.Module,
    direction: Direction,
    names: Iterable[str] | None = None,
    *,
    rel: float = 1e-5,
) -> None:
    """Assert a recorded line: its update norm, and the figures of the model, its layers and its module kinds.

    Args:
        line: A line of ``readings.jsonl``.
        model: The model, loaded from the checkpoint of that line.
        start: The model before its first step.
        direction: What was watched.
        names: The trained tensors. Default: those with a LoRA adapter.
        rel: Relative tolerance.
    """
    want, w = expected(model, start, names), dense(direction)
    everything = list(dict.fromkeys([*want.trained, *w]))
    norm = torch.cat([trained.change.flatten() for trained in want.trained.values()]).norm()
    assert norm > 0
    assert line["update_norm"] == pytest.approx(float(norm), rel=rel)
    found = line["directions"][direction.name]
    parts = {"model": (found, everything)}
    for layer, figures in found["layers"].items():
        parts[f"layer {layer}"] = (figures, [n for n in everything if re.search(rf"\.(?:layers|h)\.{layer}\.", n)])
    for kind, figures in found["modules"].items():
        parts[kind] = (figures, [n for n in everything if n.split(".")[-2] == kind])
    for part, (figures, within) in parts.items():
        _assert_figures(part, figures, want, within, w, rel)


def _assert_figures(
    part: str, figures: Mapping[str, Any], want: Expected, names: list[str], w: Weights, rel: float
) -> None:
    answer = want.score(names, w)
    for figure in FIGURES:
        assert figures[figure] == pytest.approx(getattr(answer, figure), rel=rel, abs=2e-6), (part, figure)


def parameters(model: nn.Module) -> list[str]:
    """Return the names of a plain model's parameters, tied ones once."""
    return [name for name, _ in model.named_parameters()]
