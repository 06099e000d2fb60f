"""Every adapter of PEFT: its real effect on the weights is measured, or it is refused by name."""

import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftType, get_peft_model
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests import oracle as slow
from tests.support.adapters import EXACT, EXPERTS, FACTORS, MERGED, REFUSED, RESCALED, Case
from tests.support.adapters_table import table
from tests.support.models import dense, lora, low_rank, move, starts, tiny_llama
from weightwatch.measure.sums import Sums, measure
from weightwatch.monitor import Monitor
from weightwatch.update.change import Merged, Rescaled
from weightwatch.update.live import ModelView, Update
from weightwatch.update.peft import adapters, merging
from weightwatch.update.peft.modules import Start
from weightwatch.update.reference import Reference
from weightwatch.vectors import Direction, LowRank, WeightWatchError
from weightwatch.vectors.weights.names import canonical

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=EXACT)
def exact(request: pytest.FixtureRequest) -> Iterator[Case]:
    case = EXACT[request.param]
    pytest.importorskip(case.needs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield case


def directions(model: nn.Module, names: Iterable[str]) -> list[Direction]:
    """Return directions of both kinds on the base beneath a model: those that have one of some tensors."""
    plain = copy.deepcopy(model).unload()
    made = [dense(plain, 6, name="dense"), dense(plain, 8, name="noise", kind="control")]
    if any(isinstance(module, nn.Linear | nn.Embedding | Conv1D) for module in plain.modules()):
        made += [low_rank(plain, 5), low_rank(plain, 7, name="style", kind="control", rank=2)]
    return [direction for direction in made if not direction.deltas.keys().isdisjoint(names)]


@pytest.mark.parametrize("begun", [False, True], ids=["anew", "continued"])
def test_every_figure_is_that_of_the_fp64_reference(exact: Case, begun: bool) -> None:
    model = exact.build()
    if begun:
        move(model, seed=9, size=0.2)
    start = copy.deepcopy(model)
    reference = Reference(adapters=starts(model))
    move(model, seed=3)
    want = slow.expected(model, start)
    watched = directions(model, want.trained)
    reading = Monitor(watched, reference=reference).measure(model)
    slow.assert_reading(reading, want, watched, rel=2e-5, abs=1e-6)


def test_each_is_measured_in_the_way_of_the_table(exact: Case) -> None:
    model = exact.build()
    kinds = {type(change) for change in Update(ModelView(model)).values()}
    assert {FACTORS: LowRank, RESCALED: Rescaled, MERGED: Merged, EXPERTS: Merged}[exact.how] in kinds
    assert kinds <= {LowRank, Merged} or exact.how == RESCALED


def summed(update: Update) -> Sums:
    """Measure an update against a direction that has none of its tensors."""
    return measure(update, [Direction.from_tensors({"elsewhere": torch.ones(1)}, name="elsewhere")])


def test_before_the_first_step_nothing_has_changed(exact: Case) -> None:
    model = exact.build()
    reference = Reference(adapters=starts(model))
    assert summed(Update(ModelView(model), reference)).update.sum() == 0.0


def test_every_type_of_adapter_that_peft_knows_is_measured_or_refused() -> None:
    assert {case.tuner for case in [*EXACT.values(), *REFUSED.values()]} == set(PeftType)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_change_of_weights_is_refused_by_name(name: str) -> None:
    case = REFUSED[name]
    model = case.build()
    with pytest.raises(WeightWatchError, match=rf"(?s)not supported, since.*{case.how}.*Train with LoRA, DoRA or"):
        Update(ModelView(model))
    with pytest.raises(WeightWatchError, match=case.how):
        Monitor(dense(tiny_llama(), 5)).start(model)


def test_the_table_in_the_documentation_is_that_of_the_tests() -> None:
    page = Path(__file__).parents[3] / "docs" / "adapters.md"
    assert page.read_text() == table(), "run: python -m tests.support.adapters_table > docs/adapters.md"


@pytest.mark.parametrize("name", ["LoHa", "OFT", "pVeRA", "DoRA", "LN tuning", "LoRA on MultiheadAttention", "AdaLoRA"])
def test_measuring_leaves_no_trace(name: str) -> None:
    model = EXACT[name].build().train()
    merging._results.clear()
    before = copy.deepcopy(model.state_dict())
    flags = {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()}
    generator = torch.get_rng_state()
    starts(model)
    summed(Update(ModelView(model)))
    assert torch.equal(torch.get_rng_state(), generator)
    assert {n: (p.requires_grad, p.grad) for n, p in model.named_parameters()} == flags
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], tensor) for n, tensor in before.items())
    assert model.training
    assert not any(getattr(module, "merged_adapters", []) for module in model.modules())


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "LoHa"])
def test_adapters_merged_for_the_moment_are_measured_only_where_the_base_is_not_needed(name: str) -> None:
    model = EXACT[name].build()
    move(model, seed=1)
    want = slow.multiplied_out(Update(ModelView(model)))
    model.merge_adapter()
    if name == "LoRA":
        found = slow.multiplied_out(Update(ModelView(model)))
        assert all(torch.equal(found[key], tensor) for key, tensor in want.items())
    else:
        with pytest.raises(WeightWatchError, match=r"q_proj is merged into its weight now.*Unmerge it"):
            Update(ModelView(model))
    model.unmerge_adapter()
    assert Update(ModelView(model)).keys() == want.keys()


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "LoHa", "trainable tokens"])
def test_disabled_adapters_are_an_error(name: str) -> None:
    model = EXACT[name].build()
    with model.disable_adapter(), pytest.raises(WeightWatchError, match=r"disabled.*Enable them to measure"):
        Update(ModelView(model))
    Update(ModelView(model))


@pytest.mark.parametrize("name", ["LoRA", "DoRA", "LoHa"])
def test_of_sharded_weights_only_factors_can_be_measured(name: str) -> None:
    model = EXACT[name].build()
    view = ModelView(model)
    adapted = replace(view.adapters[0], sharded=True)
    if name == "LoRA":
        assert adapters.changes(adapted, view.values, Start(), every=False)
    else:
        with pytest.raises(WeightWatchError, match=r"q_proj is a .* spread over processes.*Train with plain LoRA"):
            adapters.changes(adapted, view.values, Start(), every=False)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dora", [False, True])
def test_lora_and_dora_on_a_quantised_weight_are_exact(bits: int, dora: bool) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=dora, task_type="CAUSAL_LM")
    model = get_peft_model(quantised(bits), config)
    reference = Reference(adapters=starts(model))
    move(model, seed=3)
    for name, change in slow.multiplied_out(Update(ModelView(model), reference)).items():
        layer = model.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
        inputs = torch.eye(64)
        with torch.no_grad():
            beneath = dequantize_module_weight(layer.base_layer).float()
            outputs = layer(inputs) - (inputs if dora else layer.base_layer(inputs))
        wanted = outputs.T + torch.eye(64) - beneath if dora else outputs.T
        assert (change - wanted).norm() < 1e-5 * max(wanted.norm(), beneath.norm())


def quantised(bits: int) -> nn.Module:
    """Return a model whose linear layers are stored in 4 or 8 bits."""
    import bitsandbytes

    base = tiny_llama(tie_word_embeddings=False, hidden_size=64, intermediate_size=64)
    for path, module in list(base.named_modules()):
        if path.endswith(("q_proj", "down_proj")):
            if bits == 4:
                packed = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32)
            else:
                packed = bitsandbytes.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
            packed.load_state_dict(module.state_dict())
            base.set_submodule(path, packed.to("cpu"))
    setattr(base, f"is_loaded_in_{bits}bit", True)
    return base


@pytest.mark.parametrize("config", [peft.LoHaConfig, peft.HRAConfig, peft.VeraConfig, peft.HiraConfig])
def test_what_needs_a_merge_is_refused_on_a_quantised_weight(config: type[peft.PeftConfig]) -> None:
    pytest.importorskip("bitsandbytes")
    model = get_peft_model(quantised(4), config(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(WeightWatchError, match=r"q_proj is a .* on a quantised weight.*Train with LoRA or DoRA"):
        Update(ModelView(model))


def test_a_model_loaded_for_inference_shows_its_active_adapter(tmp_path: Path) -> None:
    torch.manual_seed(1)
    base = tiny_llama(tie_word_embeddings=False)
    model = get_peft_model(copy.deepcopy(base), peft.LoHaConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    move(model, seed=1)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path))
    assert not any(p.requires_grad for p in loaded.parameters())
    found, want = slow.multiplied_out(Update(ModelView(loaded))), slow.multiplied_out(Update(ModelView(model)))
    assert found.keys() == want.keys()
    assert all(torch.allclose(found[name], tensor) for name, tensor in want.items())


def test_diverged_adapters_read_as_tensors_that_hold_nan() -> None:
    for name in ("LoHa", "OFT", "DoRA"):
        model = EXACT[name].build()
        move(model, seed=1)
        chosen = next(n for n, p in model.named_parameters() if p.requires_grad and "layers.1" in n)
        with torch.no_grad():
            dict(model.named_parameters())[chosen].view(-1)[0] = torch.nan
        sums = summed(Update(ModelView(model)))
        assert [key for key in sums.left_out if "layers.1" in key]
        assert sums.update.sum() > 0


def test_start_factors_are_those_of_trained_adapters_that_did_not_start_at_zero() -> None:
    assert starts(lora(tiny_llama())) == {}
    model = lora(tiny_llama(), init_lora_weights="pissa")
    kept = starts(model)
    factors = [name for name in kept if ".lora_" in name]
    assert {canonical(name.partition(".lora_")[0] + ".") + "weight" for name in factors} == set(
        Update(ModelView(model))
    )
    before = {name: tensor.clone() for name, tensor in kept.items()}
    move(model, seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in kept.items())  # copies, not views


def test_an_adapter_added_after_the_start_was_taken_counts_from_zero() -> None:
    model = lora(tiny_llama(), init_lora_weights=False)
    kept = starts(model)
    start = slow.merged(model)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    move(model, seed=1)
    after = slow.merged(model)
    for name, change in slow.multiplied_out(Update(ModelView(model), Reference(adapters=kept))).items():
        assert torch.allclose(change.double(), after[name] - start[name], atol=1e-5), name


def begun(model: nn.Module) -> Reference:
    """Return the reference of a run that begins now."""
    monitor = Monitor(dense(tiny_llama(), 5))
    monitor.start(model)
    return monitor.reference


def two(**second: object) -> nn.Module:
    """Return a model with two LoRA adapters that do not start at zero; the first is active."""
    model = lora(tiny_llama(), target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model.add_adapter("other", LoraConfig(**{"r": 2, "target_modules": ["q_proj", "down_proj"], **second}))
    return model


def assert_exact(model: nn.Module, start: dict[str, torch.Tensor], reference: Reference) -> None:
    after = slow.merged(model)
    update = slow.multiplied_out(Update(ModelView(model), reference))
    for name in {*update, *(n for n in after if not torch.equal(after[n], start[n]))}:
        assert torch.allclose(update[name].double(), after[name] - start[name], atol=2e-6), name


@pytest.mark.parametrize("active", [["other"], ["default", "other"], ["other", "default"]], ids=",".join)
@pytest.mark.parametrize("second", [{}, {"use_dora": True}, {"use_rslora": True, "init_lora_weights": False}], ids=str)
def test_switching_adapters_in_mid_run_takes_off_what_the_first_began_with(
    active: list[str], second: dict[str, object]
) -> None:
    model = two(**second)
    start, reference = slow.merged(model), begun(model)
    move(model, seed=1)
    assert_exact(model, start, reference)
    model.base_model.set_adapter(active)
    move(model, seed=2)
    assert_exact(model, start, reference)
    model.set_adapter("default")
    assert_exact(model, start, reference)


def test_an_adapter_that_was_deleted_is_still_taken_off() -> None:
    model = two()
    start, reference = slow.merged(model), begun(model)
    model.set_adapter("other")
    model.delete_adapter("default")
    move(model, seed=1)
    assert_exact(model, start, reference)


def test_a_deleted_adapter_without_factors_is_refused() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    reference = begun(model)
    model.set_adapter("other")
    model.delete_adapter("default")
    with pytest.raises(WeightWatchError, match=r"adapter 'default' of .*q_proj, with which the run began, was deleted"):
        Update(ModelView(model), reference)


def test_adapters_that_are_gone_with_their_modules_are_refused() -> None:
    model = two(target_modules=["q_proj"])
    reference = begun(model)
    model.set_adapter("other")
    model.delete_adapter("default")
    with pytest.raises(WeightWatchError, match=r"adapter 'default' of .*down_proj, with which the run began, is gone"):
        Update(ModelView(model), reference)


def test_a_frozen_adapter_that_is_switched_on_or_off_in_mid_run_counts() -> None:
    model = two(init_lora_weights=False)
    model.base_model.set_adapter(["default", "other"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    start, reference = slow.merged(model), begun(model)
    move(model, seed=1)
    assert_exact(model, start, reference)
    model.base_model.set_adapter(["default"])
    assert_exact(model, start, reference)
    model.add_adapter("third", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "third"], inference_mode=True)
    assert_exact(model, start, reference)


def test_a_frozen_adapter_that_is_trained_in_mid_run_is_measured_from_its_start() -> None:
    model = two(init_lora_weights=False)
    model.base_model.set_adapter(["default", "other"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    start, reference = slow.merged(model), begun(model)
    model.base_model.set_adapter(["default", "other"])
    move(model, seed=1)
    assert_exact(model, start, reference)


def test_a_scaling_that_changes_in_mid_run_is_part_of_the_update() -> None:
    model = two()
    start, reference = slow.merged(model), begun(model)
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 3
    assert_exact(model, start, reference)


def test_an_adapter_that_is_swapped_for_another_in_place_is_measured(tmp_path: Path) -> None:
    from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

    config = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    lora(tiny_llama(), seed=7, r=8, lora_alpha=24, **config).save_pretrained(tmp_path)
    model = lora(tiny_llama(), **config)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    start, reference = slow.merged(model), begun(model)
    move(model, seed=1)
    assert_exact(model, start, reference)
    hotswap_adapter(model, str(tmp_path), adapter_name="default")
    assert_exact(model, start, reference)


def test_an_adapter_that_someone_calls_ref_is_no_start_of_another() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"])
    model.add_adapter("ref", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    start, reference = slow.merged(model), begun(model)
    move(model, seed=1)
    assert_exact(model, start, reference)


@pytest.mark.parametrize("name", ["trainable tokens", "LoHa", "LoRA with the biases of B"])
def test_other_adapters_that_are_switched_in_mid_run_are_measured_too(name: str) -> None:
    model = EXACT[name].build()
    move(model, seed=9, size=0.2)
    (config,) = model.peft_config.values()
    model.add_adapter("other", copy.deepcopy(config))
    start, reference = slow.merged(model), begun(model)
    model.set_adapter("other")
    move(model, seed=1)
    assert_exact(model, start, reference)
