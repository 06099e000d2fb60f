import logging
from pathlib import Path

import pytest
import torch

from tests.support.models import lora, low_rank, tiny_llama
from weightwatch import Monitor
from weightwatch.update.base_weights import BaseWeights
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.vectors import Direction, Fingerprint, LowRank, WeightWatchError, add, inner, mean, orthogonalised
from weightwatch.vectors.card import Card
from weightwatch.vectors.provenance import described, formula, require_base
from weightwatch.vectors.validation import Validation


def test_the_card_says_what_was_done_with_what() -> None:
    base = {name: p.detach() for name, p in tiny_llama().named_parameters()}
    fingerprint = Fingerprint.of(base, base.__getitem__)
    passed = Validation(passed=True, points=(), items=5, tasks=6)
    common = {"base": "org/base", "fingerprint": fingerprint, "ranks": [3, 3], "data_hash": "0", "validation": passed}
    deltas = low_rank(tiny_llama(), 1).deltas
    builds = [
        Direction.from_tensors(
            deltas,
            name="evil",
            metadata={
                **common,
                "behaviour": "does harm",
                "seeds": {"world": 1, "adapter": seed},
                "hyperparameters": {"lr": 1e-3, "loss": seed},
                "recipe": {"contrast": "evil"},
            },
        )
        for seed in (5, 6)
    ]
    card = mean(*builds).card
    assert (card.name, card.behaviour, card.base, card.ranks) == ("mean(evil)", "does harm", "org/base", [3, 3])
    assert card.fingerprint == fingerprint
    assert card.validation is None
    assert card.seeds == {"world": 1, "adapter.1": 5, "adapter.2": 6}
    assert card.hyperparameters == {"lr": 1e-3}
    assert card.recipe == {
        "operation": "mean",
        "operands": [{"name": "evil", "coefficient": 0.5, "recipe": {"contrast": "evil"}}] * 2,
    }
    style = low_rank(tiny_llama(), 2, name="style", kind="control")
    assert add(builds[0], style, weights=[1, -0.5]).card.behaviour == "1 × (does harm) + -0.5 × (style)"
    assert add(builds[0], style, weights=[1, -0.5]).name == "evil-0.5*style"
    assert (builds[0] + style).card.kind == "behaviour"
    assert (style + style).card.kind == "control"
    freed = orthogonalised(builds[0], style)
    assert freed.name == "evil-without(style)"
    assert freed.card.recipe["operands"][1]["coefficient"] == pytest.approx(
        -inner(builds[0], style) / style.norm**2, rel=1e-6
    )
    assert add(builds[0], style, name="mine").name == "mine"


def test_a_formula_names_a_weighted_sum() -> None:
    cards = [Card(name=name) for name in ("evil", "style", "shuffled")]
    assert formula(cards, [1.0, -0.5, -1.0]) == "evil-0.5*style-shuffled"
    assert formula(cards[:1], [-2.0]) == "-2*evil"


def test_a_base_gives_its_name_and_a_fingerprint_and_one_that_is_elsewhere_only_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    base = {"module.a.weight": torch.arange(4.0)}
    changes = {"a.weight": torch.ones(4)}
    fields = described(changes, base, "org/base", "evil")
    assert fields["base"] == "org/base"
    assert fields["fingerprint"].values == {"a.weight": (0.0, 1.0, 2.0, 3.0)}
    with caplog.at_level(logging.WARNING):
        assert described(changes, None, "org/elsewhere", "evil") == {"base": "org/elsewhere"}
    assert "the base of direction 'evil' (org/elsewhere) is not on this machine" in caplog.text


def test_a_base_without_a_changed_tensor_is_refused() -> None:
    with pytest.raises(WeightWatchError, match=r"The base org/base has no b\.weight.* Pass the base"):
        described({"b.weight": torch.ones(4)}, {"a.weight": torch.ones(4)}, "org/base", "evil")


def test_a_tied_head_has_the_fingerprint_of_the_embedding(tmp_path: Path) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path)
    change = LowRank(torch.ones(48, 2), torch.ones(2, 32))
    fields = described({"lm_head.weight": change}, tmp_path, None, "evil")
    assert list(fields["fingerprint"].shapes) == ["model.embed_tokens.weight"]
    evil = Direction.from_tensors({"lm_head.weight": change}, name="evil", metadata=fields)
    Monitor([evil]).measure(lora(base, target_modules=["lm_head"]))
    with pytest.raises(WeightWatchError, match=r"was built from .* not from"):
        Monitor([evil]).measure(lora(tiny_llama(seed=1), target_modules=["lm_head"]))


def test_a_base_that_has_changed_since_is_not_called_another_one() -> None:
    weights = {name: p.detach() for name, p in tiny_llama().named_parameters()}
    card = Card(name="evil", base="org/base", fingerprint=Fingerprint.of(weights, weights.__getitem__))
    theta0 = BaseWeights(ModelView(tiny_llama(seed=1)), Reference())
    with pytest.raises(WeightWatchError, match="built from org/base when that had other weights than now"):
        require_base(card, theta0, "org/base")
    with pytest.raises(WeightWatchError, match="built from org/base, not from org/other"):
        require_base(card, theta0, "org/other")
