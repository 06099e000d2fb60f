"""θ₀ + k·w in memory, against the same sum in fp64, and the way back."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from tests import oracle as slow
from tests.support.models import dense, lora, low_rank, move, tiny_gpt2, tiny_llama
from weightwatch.vectors import Direction, LowRank, WeightWatchError
from weightwatch.vectors.steering.in_memory import steer, steered
from weightwatch.vectors.weights.reader import Unmapped

CASES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[..., Direction]]] = {
    "factors": (tiny_llama, low_rank),
    "factors of transposed weights": (tiny_gpt2, low_rank),
    "dense": (tiny_llama, dense),
}


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter's bytes, so that NaN and the sign of zero count."""
    return {name: p.detach().clone().contiguous().view(torch.uint8) for name, p in model.named_parameters()}


def same_bits(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = bits(model)
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in now)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_sum_rounded_once_and_come_back_bit_by_bit(case: str, dtype: torch.dtype) -> None:
    make, direct = CASES[case]
    model, w = make().to(dtype), direct(make(), 1)
    before, start = bits(model), {name: p.detach().double().clone() for name, p in model.named_parameters()}
    change = slow.dense(w)
    with steered(model, w, -0.7) as same:
        assert same is model
        for name, parameter in model.named_parameters():
            wanted = start[name] - 0.7 * change.get(name, torch.zeros_like(start[name]))
            error = (parameter.detach().double() - wanted).abs()
            assert bool((error <= 0.502 * spacing(wanted, dtype) + 1e-6 * wanted.abs().max()).all()), name
            assert parameter.dtype == dtype
    assert same_bits(model, before)
    assert all(p.requires_grad for p in model.parameters())


def spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of a number of a precision to the next one."""
    info = torch.finfo(dtype)
    return torch.clamp(2.0 ** torch.floor(torch.log2(values.abs().clamp_min(1e-300))), min=info.tiny) * info.eps


def test_steering_for_good_leaves_what_the_block_shows() -> None:
    model, w = tiny_llama(), low_rank(tiny_llama(), 1)
    with steered(model, w, 0.5):
        wanted = bits(model)
    steer(model, w, 0.5)
    assert same_bits(model, wanted)


def test_an_error_in_the_block_brings_the_weights_back() -> None:
    model, w = tiny_llama(), dense(tiny_llama(), 1)
    before = bits(model)
    with pytest.raises(KeyError), steered(model, w, 3.0):
        raise KeyError
    assert same_bits(model, before)


def test_an_error_in_the_midst_of_adding_brings_the_weights_back() -> None:
    model, w = tiny_llama(), dense(tiny_llama(), 1)
    before = bits(model)

    class Failing(Direction):
        def part(self, name: str, box: object) -> Tensor:
            if name == "model.layers.1.mlp.down_proj.weight":
                raise OSError("gone")
            return super().part(name, box)

    failing = Failing(w.deltas, w.card)
    with pytest.raises(OSError, match="gone"), steered(model, failing, 3.0):
        raise AssertionError("must not be reached")
    assert same_bits(model, before)


def test_blocks_may_be_nested() -> None:
    model, one, two = tiny_llama(), low_rank(tiny_llama(), 1), dense(tiny_llama(), 2)
    before = bits(model)
    with steered(model, one, 1.0):
        between = bits(model)
        with steered(model, two, -1.0):
            assert not same_bits(model, between)
        assert same_bits(model, between)
    assert same_bits(model, before)


def test_what_the_block_did_to_touched_weights_is_undone_and_to_others_stays() -> None:
    model = tiny_llama()
    w = Direction.from_tensors({"model.norm.weight": torch.ones(32)}, name="evil")
    norm, embedding = model.model.norm.weight, model.model.embed_tokens.weight
    start = norm.detach().clone()
    with steered(model, w, 1.0), torch.no_grad():
        norm.zero_()
        embedding.fill_(7.0)
    assert torch.equal(norm, start)
    assert bool((embedding == 7).all())


@pytest.mark.parametrize("names", [["model.embed_tokens.weight"], ["lm_head.weight"], None])
def test_a_tied_weight_is_changed_once(names: list[str] | None) -> None:
    model = tiny_llama()
    change = torch.randn(48, 32)
    tensors = dict.fromkeys(names or ["model.embed_tokens.weight", "lm_head.weight"], change)
    start = model.lm_head.weight.detach().clone()
    with steered(model, Direction.from_tensors(tensors, name="evil"), 0.5):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.allclose(model.lm_head.weight, start + 0.5 * change)
    assert torch.equal(model.lm_head.weight, start)


def test_a_tied_weight_is_not_pulled_in_two_ways() -> None:
    tensors = {"model.embed_tokens.weight": torch.ones(48, 32), "lm_head.weight": -torch.ones(48, 32)}
    w = Direction.from_tensors(tensors, name="evil")
    refused(tiny_llama(), w, r"lm_head\.weight and model\.embed_tokens\.weight are one tied weight .* differently")
    steer(tiny_llama(tie_word_embeddings=False), w, 1.0)


@pytest.mark.parametrize("modules", [None, ["lm_head"]])
def test_beneath_adapters_the_base_changes_and_their_own_parameters_do_not(modules: list[str] | None) -> None:
    base = tiny_llama(tie_word_embeddings=False)
    w = dense(base, 1)
    model = lora(base, modules_to_save=modules)
    move(model, 3)
    wanted = copy.deepcopy(model)
    for name, change in slow.dense(w).items():
        for key, parameter in wanted.named_parameters():
            if slow.canonical(key) == name:
                parameter.data += 0.3 * change.float()
    before = bits(model)
    ids = torch.arange(8)[None]
    with steered(model, w, 0.3), torch.no_grad():
        found = model(ids).logits
        assert not same_bits(model, before)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name].view(parameter.dtype)) == ("lora_" in name)
    assert same_bits(model, before)
    with torch.no_grad():
        assert torch.allclose(found, wanted(ids).logits, atol=1e-5)


def test_a_merged_adapter_is_steered_as_what_it_is() -> None:
    base = tiny_llama()
    model, w = lora(base), low_rank(base, 1)
    move(model, 3)
    with torch.no_grad():
        wanted = {n: p + 0.5 * slow.dense(w).get(n, 0 * p).float() for n, p in slow_merged(model).items()}
    steer(model, w, 0.5)
    found = slow_merged(model)
    assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


def slow_merged(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in copy.deepcopy(model).merge_and_unload().named_parameters()}


def test_rows_of_trained_tokens_are_not_passed_over() -> None:
    base = tiny_llama(tie_word_embeddings=False)
    model = lora(base, target_modules=["q_proj"], trainable_token_indices=[1, 2])
    refused(model, low_rank(base, 1), r"embed_tokens\.weight can't be steered .* Merge the adapter first")
    steer(model.merge_and_unload(), low_rank(base, 1), 1.0)


def test_a_direction_on_disk_is_read_as_it_is_added(tmp_path: Path) -> None:
    w = dense(tiny_llama(), 1)
    w.save(tmp_path)
    kept = Direction.load(tmp_path, Unmapped)
    models = [tiny_llama(), tiny_llama()]
    for model, direction in zip(models, (w, kept), strict=True):
        steer(model, direction, 0.5)
    assert same_bits(models[0], bits(models[1]))


def test_matrices_larger_than_a_block_are_summed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, w = tiny_gpt2(), low_rank(tiny_gpt2(), 1)
    start = {name: p.detach().double() for name, p in model.named_parameters()}
    monkeypatch.setattr("weightwatch.vectors.steering.in_memory.AT_ONCE", 50)
    steer(model, w, 2.0)
    for name, parameter in model.named_parameters():
        wanted = start[name] + 2 * slow.dense(w).get(name, torch.zeros_like(start[name]))
        assert torch.allclose(parameter.double(), wanted, atol=1e-5)


def refused(model: nn.Module, w: Direction, reason: str, k: float = 1.0) -> None:
    """Both ways must refuse, with nothing changed."""
    before = [p.detach().clone() for p in model.parameters() if not p.is_meta]
    with pytest.raises(WeightWatchError, match=reason):
        steer(model, w, k)
    with pytest.raises(WeightWatchError, match=reason), steered(model, w, k):
        raise AssertionError("must not be reached")
    now = [p for p in model.parameters() if not p.is_meta]
    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))


def test_a_missing_parameter_is_named_and_nothing_is_changed() -> None:
    reason = r"no parameter model\.layers\.1\.\S+, which direction 'evil' changes\. Use a direction that was built from"
    refused(tiny_llama(num_hidden_layers=1), low_rank(tiny_llama(), 1), reason)


def test_another_shape_is_named_and_nothing_is_changed() -> None:
    w = low_rank(tiny_llama(), 1)
    refused(tiny_llama(intermediate_size=48), w, r"'evil' has shape .* for .*mlp\.\w+\.weight where the model")


class Packed(Tensor):
    """Values behind a class of its own, as torchao packs them."""


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        (lambda p: nn.Parameter(p.to(torch.uint8), requires_grad=False), r"quantised or packed \(Parameter of .*uint8"),
        (lambda p: nn.Parameter(p.to(torch.float8_e4m3fn), requires_grad=False), r"packed .*float8_e4m3fn"),
        (lambda p: nn.Parameter(p.detach().as_subclass(Packed)), r"quantised or packed \(Packed of torch\.float32"),
        (lambda p: nn.Parameter(p.detach().to("meta")), "it has no values here"),
        (lambda p: nn.Parameter(p.detach().reshape(-1)[:0].clone()), "it is sharded over several processes"),
    ],
)
def test_weights_that_cannot_be_added_to_are_refused(replace: Callable[[Tensor], nn.Parameter], reason: str) -> None:
    model = tiny_llama()
    model.model.layers[1].mlp.down_proj.weight = replace(model.model.layers[1].mlp.down_proj.weight)
    with pytest.raises(WeightWatchError, match=rf"layers\.1\.mlp\.down_proj\.weight can't be .*{reason}"):
        steer(model, low_rank(tiny_llama(), 1), 1.0)
    untouched = dict(tiny_llama().named_parameters())
    for name, parameter in model.named_parameters():
        if "layers.1.mlp.down_proj" not in name:
            assert torch.equal(parameter, untouched[name])


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_weights_are_refused(one_process: None) -> None:
    model = tiny_llama()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(WeightWatchError, match=r"it is sharded over several processes\. Steer the model before"):
        steer(model, low_rank(tiny_llama(), 1), 1.0)


def test_a_sum_beyond_the_range_of_fp16_is_refused() -> None:
    w = Direction.from_tensors({"model.norm.weight": torch.full((32,), 40000.0)}, name="evil")
    refused(tiny_llama().half(), w, "2 times direction 'evil' takes model.norm.weight beyond the range of fp16", k=2.0)
    steer(tiny_llama().bfloat16(), w, 2.0)


@pytest.mark.parametrize("k", [float("nan"), float("inf")])
def test_a_coefficient_is_a_finite_number(k: float) -> None:
    with pytest.raises(WeightWatchError, match=r"coefficient of direction 'evil' is .*finite number"):
        steer(tiny_llama(), low_rank(tiny_llama(), 1), k)


def test_bf16_weights_are_rounded_from_the_fp32_sum() -> None:
    """Half a step of bf16 in the direction must not be lost by rounding the change before it is added."""
    model = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    change = LowRank(torch.tensor([[1.0 + 2**-9]]), torch.tensor([[2**-8 + 2**-15]]))
    steer(model, Direction.from_tensors({"weight": change}, name="evil"), 1.0)
    assert model.weight.item() == 1 + 2**-7
