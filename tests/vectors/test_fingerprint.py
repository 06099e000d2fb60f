import re

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tests.support.models import low_rank, move, tiny_llama
from weightwatch.vectors.fingerprint import Fingerprint


class Plain:
    """The weights of a model, as a fingerprint looks at them."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = {name: p.detach() for name, p in model.named_parameters()}

    def shape(self, name: str) -> tuple[int, ...] | None:
        return tuple(self.tensors[name].shape)

    def values(self, name: str, positions: Tensor) -> Tensor:
        return self.tensors[name].reshape(-1)[positions].float()


class Quantised(Plain):
    def shape(self, name: str) -> tuple[int, ...] | None:
        return None


def fingerprint() -> Fingerprint:
    base = tiny_llama()
    return Fingerprint.of([name for name, _ in base.named_parameters()], Plain(base).tensors.__getitem__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_base_is_known_again_in_any_precision(dtype: torch.dtype) -> None:
    assert fingerprint().mismatch(Plain(tiny_llama().to(dtype))) is None


def test_another_model_of_the_same_shape_is_told_apart() -> None:
    assert "sampled weights agree" in (fingerprint().mismatch(Plain(tiny_llama(seed=1))) or "")


def test_a_fine_tune_of_the_base_is_told_apart() -> None:
    tuned = tiny_llama()
    move(tuned, seed=1, size=0.05)
    assert "sampled weights agree" in (fingerprint().mismatch(Plain(tuned)) or "")


def test_another_width_is_named_with_both_shapes() -> None:
    found = fingerprint().mismatch(Plain(tiny_llama(hidden_size=64)))
    assert found is not None
    assert re.fullmatch(r"model\.\S+ has shape \(.*64.*\) where the direction's base has \(.*32.*\)", found)


def test_a_model_without_the_tensor_is_told_by_its_name() -> None:
    found = fingerprint().mismatch(Plain(tiny_llama(num_hidden_layers=1)))
    assert found is not None
    assert found.startswith("the model has no model.layers.1.")


def test_weights_that_cannot_be_read_are_passed_over() -> None:
    assert fingerprint().mismatch(Quantised(tiny_llama())) is None


def test_a_base_of_which_nothing_can_be_read_is_said_to_be_unverified(caplog: pytest.LogCaptureFixture) -> None:
    direction = low_rank(tiny_llama(), 1)
    direction.card = direction.card.model_copy(update={"fingerprint": fingerprint()})
    direction.require(Plain(tiny_llama()), "this model")
    assert not caplog.records
    direction.require(Quantised(tiny_llama(1)), "this model")
    assert (
        "this model are quantised, so it can't be verified that it is the base of direction 'evil' (not named)"
        in caplog.text
    )


def test_it_survives_json() -> None:
    assert Fingerprint.model_validate_json(fingerprint().model_dump_json()) == fingerprint()


def test_a_large_model_is_sampled_sparsely() -> None:
    names = [f"layers.{i}.weight" for i in range(1000)]
    read: list[str] = []

    def values(name: str) -> Tensor:
        read.append(name)
        return torch.ones(1000)

    taken = Fingerprint.of(names, values)
    assert len(read) <= 32
    assert {len(sample) for sample in taken.values.values()} == {16}


def test_fingerprints_of_one_base_agree_and_join_and_those_of_others_do_not() -> None:
    base, other = tiny_llama(), tiny_llama(seed=1)
    names = [name for name, _ in base.named_parameters()]
    whole = Fingerprint.of(names, Plain(base).tensors.__getitem__)
    half = Fingerprint.of(names[::2], Plain(tiny_llama().bfloat16()).tensors.__getitem__)
    assert whole.differs(half) is None
    assert whole.joined(half).mismatch(Plain(base)) is None
    assert "sampled weights agree" in (whole.differs(Fingerprint.of(names, Plain(other).tensors.__getitem__)) or "")
    wide = Fingerprint.of(names, Plain(tiny_llama(hidden_size=64)).tensors.__getitem__)
    assert "has shape" in (whole.differs(wide) or "")
    elsewhere = Fingerprint.of(["other"], lambda name: torch.ones(3))
    assert elsewhere.differs(whole) is None


@pytest.mark.parametrize(
    ("shapes", "values"),
    [
        ({}, {}),
        ({"a": (3,)}, {}),
        ({"a": (3,)}, {"a": ()}),
        ({"a": (3,)}, {"a": (1.0,)}),
        ({"a": (100,)}, {"a": (1.0,) * 17}),
        ({}, {"a": (1.0, 2.0)}),
        ({"a": (0,)}, {"a": ()}),
        ({"a": (-3,)}, {"a": (1.0, 2.0, 3.0)}),
    ],
)
def test_a_fingerprint_without_its_samples_would_fit_any_base_and_is_refused(
    shapes: dict[str, tuple[int, ...]], values: dict[str, tuple[float, ...]]
) -> None:
    with pytest.raises(ValidationError):
        Fingerprint(shapes=shapes, values=values)
