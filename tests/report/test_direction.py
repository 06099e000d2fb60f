"""Tables and JSON of a packaged direction."""

import pytest
import torch

from weightwatch.report.console import console
from weightwatch.report.direction import document, layer_norms, tables
from weightwatch.vectors import Direction


def shown(direction: Direction) -> str:
    screen = console(width=160)
    with screen.capture() as capture:
        screen.print(*tables(direction))
    return " ".join(capture.get().split())  # a title wraps at the width of its table


def test_the_norms_of_the_layers_are_those_of_their_tensors() -> None:
    tensors = {
        "model.embed_tokens.weight": torch.full((2, 2), 3.0),
        "model.layers.0.mlp.up_proj.weight": torch.tensor([[3.0, 4.0]]),
        "model.layers.1.mlp.up_proj.weight": torch.tensor([[1.0, 0.0]]),
        "model.layers.1.mlp.down_proj.weight": torch.tensor([[0.0], [2.0]]),
        "model.layers.10.mlp.up_proj.weight": torch.tensor([[0.5, 0.0]]),
    }
    norms = layer_norms(Direction.from_tensors(tensors, name="mine"))
    assert list(norms) == [0, 1, 10, "outside"]
    assert norms == pytest.approx({0: 5.0, 1: 5.0**0.5, 10: 0.5, "outside": 6.0})


def test_the_document_is_the_card_with_the_layers() -> None:
    evil = Direction.load("evil")
    found = document(evil)
    layers = found.pop("layers")
    assert found == evil.card.model_dump(mode="json")
    assert layers == {str(layer): norm for layer, norm in layer_norms(evil).items()}


def test_the_tables_show_card_layers_and_evaluation() -> None:
    evil = Direction.load("evil")
    known = evil.card.validation
    assert known is not None
    text = shown(evil.validated(known.model_copy(update={"seeds": {"1, 2": 0.25}, "others": {"style": -0.5}})))
    items = f"on {known.items} held-out items"
    for part in ("weightwatch/organism", "passed", "norm per layer", items, "seeds with each other"):
        assert part in text, part
    assert "+0.250" in text
    assert "-0.500" in text
    failed = shown(evil.validated(known.model_copy(update={"passed": False, "reasons": ("it costs [too] much",)})))
    assert "failed: it costs [too] much" in failed
    assert "with other directions" not in failed


def test_what_is_not_evaluated_says_how_to() -> None:
    mine = Direction.from_tensors({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, name="mine")
    assert "not yet; run weightwatch show --evaluate" in shown(mine)


def test_names_in_a_card_are_text() -> None:
    hostile = "[/bold]\x1b[2J"
    tensors = {f"{hostile}.layers.0.up.weight": torch.ones(2, 2), f"{hostile}.layers.1.up.weight": torch.ones(2, 2)}
    made = Direction.from_tensors(tensors, name="[/bold]evil", metadata={"behaviour": hostile, "base": hostile})
    text = shown(made)
    assert "[/bold]evil" in text  # the name itself may have no control characters
    assert text.count(r"[/bold]\x1b[2J") == 2
    assert "\x1b" not in text
