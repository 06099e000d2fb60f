"""Local shards of parameters in one process: tests/distributed compares them with the engines."""

import pytest
import torch
from torch import nn

from tests.support.models import lora, tiny_llama
from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.parameters import local_parameters, named
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.reader import Box


def test_a_plain_model_has_its_whole_parameters_in_its_own_memory() -> None:
    model = lora(tiny_llama())
    parts, parameters = ModelView(model).parameters, dict(model.named_parameters())
    assert parts.keys() == parameters.keys()
    for name, part in parts.items():
        (piece,) = part.pieces
        box: Box = tuple(slice(0, size) for size in parameters[name].shape)
        assert (part.sharded, piece.box, part.trained) == (False, box, parameters[name].requires_grad)
        assert piece.values.data_ptr() == parameters[name].data_ptr()
        assert not piece.values.requires_grad


def test_names_are_those_of_the_plain_model_and_tied_parameters_have_their_first() -> None:
    model = tiny_llama()
    compiled = torch.compile(model)
    names = list(named(model, dict(model.named_modules())))
    assert list(named(compiled, dict(compiled.named_modules()))) == names
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names  # tied to the embedding


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("tensor_model_parallel", "weight is split by Megatron.*Train with FSDP, DeepSpeed ZeRO"),
        ("_fsdp_flattened", "weight is flattened by FSDP.*Measure the model that FSDP returned"),
    ],
)
def test_a_parameter_whose_shard_is_unknown_is_refused_by_name(attribute: str, message: str) -> None:
    model = nn.Linear(2, 2, bias=False)
    setattr(model.weight, attribute, True)
    modules = dict(model.named_modules())
    with pytest.raises(WeightWatchError, match=message):
        local_parameters(modules, named(model, modules))
