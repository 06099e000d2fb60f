"""FSDP1 in one process, which shards nothing: tests/distributed reads its shards in several."""

import pytest
import torch
from torch import nn

from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.fsdp1 import flat_parameters, fsdp1_modules
from weightwatch.update.sharding.parameters import local_parameters, named


def test_a_model_without_fsdp_has_no_wrappers() -> None:
    assert list(fsdp1_modules(dict(nn.Linear(2, 2).named_modules()))) == []
    assert list(flat_parameters([])) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("original", [True, False], ids=["original parameters", "flat parameter"])
def test_a_flat_parameter_is_read_as_the_parameters_in_it(group: None, original: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    plain = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4, bias=False))
    want = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    model = FullyShardedDataParallel(plain, use_orig_params=original, device_id=torch.device("cpu"))
    modules = dict(model.named_modules())
    ((path, _),) = fsdp1_modules(modules)
    assert path == ""
    found = local_parameters(modules, named(model, modules))
    names = {name for name in found if not name.endswith("_flat_param")}
    assert names == want.keys()
    for name in names:
        (piece,) = found[name].pieces
        assert (found[name].shape, found[name].trained, found[name].sharded) == (tuple(want[name].shape), True, False)
        assert torch.equal(piece.values, want[name])


@pytest.mark.filterwarnings("ignore")
def test_modules_that_are_wrapped_after_a_check_are_found_at_the_next(group: None) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4, bias=False))
    layout = ModelView(model).layout
    model[0] = FullyShardedDataParallel(model[0], device_id=torch.device("cpu"))
    view = ModelView(model, layout=layout)
    assert view.layout.flat.keys() == {"0"}
    assert view.parameters.keys() == ModelView(model).parameters.keys() >= {"0.weight", "0.bias", "1.weight"}
    assert ModelView(model, layout=view.layout).layout is not view.layout  # flattened ones are found at each check
