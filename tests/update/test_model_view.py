"""What a check reads from a model, in the ways that people set one up."""

import torch
from torch import nn

from tests.support.models import lora, move, tiny_llama
from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors.weights.names import canonical


def test_a_full_model_trains_its_parameters_directly() -> None:
    model = tiny_llama()
    model.model.layers[0].requires_grad_(False)
    view = ModelView(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(view.full) == view.trained == trained
    assert (view.adapters, view.copies, view.every, view.sharded, view.ranks) == ([], {}, False, False, ALONE)


def test_adapters_and_saved_copies_are_told_from_what_is_trained_directly() -> None:
    model = lora(tiny_llama(tie_word_embeddings=False), target_modules=["q_proj"], modules_to_save=["lm_head"])
    model.base_model.model.model.norm.weight.requires_grad_(True)
    view = ModelView(model)
    assert len(view.adapters) == 2
    ((copied, original),) = view.copies.items()
    assert canonical(copied) == canonical(original) == "lm_head.weight"
    assert {canonical(name) for name in view.full} == {"lm_head.weight", "model.norm.weight"}
    own = {name for adapted in view.adapters for name in adapted.own}
    assert all(torch.equal(view.values(name), dict(model.named_parameters())[name]) for name in own)
    assert view.values("elsewhere") is None


def test_in_a_model_for_inference_everything_counts() -> None:
    model = tiny_llama().requires_grad_(False)
    assert ModelView(model).every
    assert set(ModelView(model).full) == {name for name, _ in model.named_parameters()}
    adapted = lora(tiny_llama(), target_modules=["q_proj"]).requires_grad_(False)
    assert ModelView(adapted).full == []  # only its adapters count


def test_what_was_trained_earlier_in_the_run_still_counts() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[0].requires_grad_(False)
    assert ModelView(model, before=["0.weight", "gone.weight"]).trained == {"0.weight", "1.weight"}
    assert ModelView(model).trained == {"1.weight"}


def test_the_further_names_of_tied_weights_are_those_after_the_first() -> None:
    assert ModelView(tiny_llama()).tied() == {"lm_head.weight": "model.embed_tokens.weight"}
    assert ModelView(tiny_llama(tie_word_embeddings=False)).tied() == {}


def test_the_base_and_an_adapter_that_changed_it_are_read_from_the_configs() -> None:
    model = tiny_llama()
    model.config._name_or_path = "someone/base"
    assert ModelView(model).base_name == "someone/base"
    assert ModelView(nn.Linear(2, 2)).base_name == ""
    assert ModelView(lora(tiny_llama(), init_lora_weights="pissa")).changed_by == "pissa"
    assert ModelView(lora(tiny_llama())).changed_by is None


def test_processes_are_those_that_are_passed() -> None:
    assert ModelView(nn.Linear(2, 2), Ranks(1, 2)).ranks == Ranks(1, 2)


def test_memory_is_where_the_weights_are() -> None:
    model = nn.Linear(2, 2, bias=False)
    move(model, 1)
    assert ModelView(model).memory() == {model.weight.untyped_storage().data_ptr()}
