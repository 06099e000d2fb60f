import pytest
import torch

from tests.support.models import dense, tiny_llama
from weightwatch.update.base_weights import BaseWeights
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.vectors import Direction, Fingerprint, LowRank, WeightWatchError


def test_names_are_those_of_the_plain_model() -> None:
    w = Direction.from_tensors({"module.base_model.model.lm_head.base_layer.weight": torch.ones(2, 2)}, name="evil")
    assert set(w.deltas) == {"lm_head.weight"}
    assert w.card.target_modules == ["lm_head"]
    assert w.squares == {"lm_head.weight": 4.0}


def test_two_names_of_one_parameter_are_an_error() -> None:
    with pytest.raises(WeightWatchError, match=r"'evil' names lm_head\.weight twice, under different prefixes"):
        Direction.from_tensors({"lm_head.weight": torch.ones(2), "module.lm_head.weight": torch.ones(2)}, name="evil")


def test_a_direction_is_not_changed_afterwards() -> None:
    w = dense(tiny_llama(), 1)
    with pytest.raises(TypeError):
        w.deltas["model.norm.weight"] = torch.zeros(32)  # type: ignore[index]  # what must not work


def test_a_direction_as_control_is_the_same_one_of_another_kind() -> None:
    w = dense(tiny_llama(), 1)
    control = w.as_control()
    assert (w.card.kind, control.card.kind) == ("behaviour", "control")
    assert all(control.deltas[name] is delta for name, delta in w.deltas.items())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "Direction 'evil' has no tensors"),
        ({"a.weight": torch.zeros(2, 2)}, "Direction 'evil' is zero"),
        ({"a.weight": LowRank(torch.zeros(2, 1), torch.ones(1, 2))}, "Direction 'evil' is zero"),
        ({"a.weight": torch.tensor([float("nan")])}, r"NaN or infinite values in a\.weight"),
        ({"a.weight": LowRank(torch.ones(2, 1), torch.tensor([[1.0, float("inf")]]))}, r"infinite values in a\.weight"),
    ],
)
def test_tensors_that_make_no_direction_are_an_error(tensors: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(WeightWatchError, match=reason):
        Direction.from_tensors(tensors, name="evil")


def test_a_direction_without_a_fingerprint_suits_any_model() -> None:
    def never(name: str) -> torch.Tensor:
        raise AssertionError(name)

    w = dense(tiny_llama(), 1)
    w.require(never, "org/model")
    assert w.card.fingerprint is None


def test_a_tensor_of_another_shape_is_an_error_that_gives_both() -> None:
    w = Direction.from_tensors({"w": torch.ones(2, 3)}, name="evil")
    w.require_shape("w", (2, 3), "the model")
    with pytest.raises(WeightWatchError, match=r"'evil' has shape \(2, 3\) for w where the model has \(3, 2\)\. Use a"):
        w.require_shape("w", (3, 2), "the model")


def test_a_direction_of_another_base_is_an_error_that_says_which() -> None:
    base = {name: p.detach() for name, p in tiny_llama().named_parameters()}
    ours, other = (BaseWeights(ModelView(model), Reference()) for model in (tiny_llama(), tiny_llama(seed=5)))
    metadata = {"base": "org/base", "fingerprint": Fingerprint.of(base, base.__getitem__)}
    w = Direction.from_tensors(dense(tiny_llama(), 1).deltas, name="evil", metadata=metadata)
    w.require(ours, "org/base")
    with pytest.raises(
        WeightWatchError, match=r"'evil' was built from org/base, not from org/other: only .* agree.* Use a"
    ):
        w.require(other, "org/other")


def test_its_repr_is_one_line_that_tells_form_size_and_norm() -> None:
    w = Direction.from_tensors({"a.weight": torch.full((2, 2), 2.0)}, name="evil")
    assert repr(w) == "Direction('evil', dense, 1 tensors, norm 4)"


def test_without_some_of_its_tensors_a_direction_is_shorter_by_their_norms() -> None:
    w = Direction.from_tensors({"a.weight": torch.full((2, 2), 2.0), "b.weight": torch.ones(3, 3)}, name="evil")
    rest = w.without(["a.weight", "c.weight"])
    assert (dict(rest.squares), rest.norm, list(rest.deltas)) == ({"b.weight": 9.0}, 3.0, ["b.weight"])
    assert "a.weight" not in rest.deltas
    assert w.without(["c.weight"]) is w
