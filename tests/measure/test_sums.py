"""Every figure of a reading against the slow fp64 reference, over the set-ups that people train with."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from tests import oracle as slow
from tests.support.models import dense, lora, low_rank, move, starts, tiny_gpt2, tiny_llama
from weightwatch.measure.sums import measure
from weightwatch.monitor import Monitor
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.vectors import Direction, LowRank, WeightWatchError

pytestmark = pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings")


@dataclass
class Run:
    """A model in training, a copy of its start, and the reference that the monitor gets."""

    model: nn.Module
    start: nn.Module
    reference: Reference
    names: list[str] | None = None
    """The trained tensors, if they are not those that have changed."""

    def expected(self) -> slow.Expected:
        return slow.expected(self.model, self.start, self.names)


def moved(model: nn.Module, size: float = 0.05, *, factors: bool = False, names: list[str] | None = None) -> Run:
    start = copy.deepcopy(model)
    kept = Reference(adapters=starts(model)) if factors else Reference()
    move(model, seed=3, size=size)
    return Run(model, start, kept, names)


def two_trained() -> Run:
    model = lora(tiny_llama())
    model.add_adapter("second", LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return moved(model)


def one_beside_a_frozen_one() -> Run:
    model = lora(tiny_llama(), init_lora_weights=False)
    model.add_adapter("second", LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"]))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".second." in name)
    return moved(model)


def one_beside_an_inactive_one() -> Run:
    model = lora(tiny_llama(), init_lora_weights=False)
    model.add_adapter("second", LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"]))
    model.set_adapter("second")
    return moved(model)


def continued(size: float) -> Run:
    model = lora(tiny_llama())
    move(model, seed=9, size=0.2)
    return moved(model, size, factors=True)


def with_saved_head() -> Run:
    model = lora(tiny_llama(tie_word_embeddings=False), modules_to_save=["lm_head"])
    linear = [f"{n}.weight" for n, m in tiny_llama().named_modules() if isinstance(m, nn.Linear)]
    return moved(model, names=linear)


def full(base: nn.Module, dtype: torch.dtype = torch.float32, size: float = 0.05) -> Run:
    model = base.to(dtype)
    start = copy.deepcopy(model)
    move(model, seed=3, size=size)
    names = [name for name, _ in model.named_parameters()]
    return Run(model, start, Reference.of(start.state_dict()), names)


def frozen_but_some() -> Run:
    run = full(tiny_llama())
    chosen = ["model.layers.0.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"]
    model = copy.deepcopy(run.start)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    move(model, seed=3)
    return Run(model, run.start, run.reference, chosen)


RUNS: dict[str, Callable[[], Run]] = {
    "LoRA on all linear modules": lambda: moved(lora(tiny_llama())),
    "LoRA on attention only": lambda: moved(lora(tiny_llama(), target_modules=["q_proj", "v_proj"])),
    "rsLoRA": lambda: moved(lora(tiny_llama(), use_rslora=True, r=5)),
    "rank and alpha patterns": lambda: moved(
        lora(tiny_llama(), rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 6}, alpha_pattern={"v_proj": 3})
    ),
    "LoRA on embeddings": lambda: moved(lora(tiny_llama(), target_modules=["embed_tokens", "q_proj"])),
    "LoRA with a frozen A": lambda: moved(freeze_a(lora(tiny_llama()))),
    "Conv1D of GPT-2": lambda: moved(lora(tiny_gpt2(), fan_in_fan_out=True)),
    "Conv1D and embeddings of GPT-2": lambda: moved(
        lora(tiny_gpt2(), target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True)
    ),
    "LoRA factors in bf16": lambda: moved(lora(tiny_llama()).to(torch.bfloat16)),
    "LoRA of a rank beyond the width": lambda: moved(lora(tiny_llama(), r=36)),
    "two trained adapters": two_trained,
    "an adapter trained beside a frozen one": one_beside_a_frozen_one,
    "an adapter trained beside an inactive one": one_beside_an_inactive_one,
    "PiSSA": lambda: moved(lora(tiny_llama(), init_lora_weights="pissa"), factors=True),
    "OLoRA": lambda: moved(lora(tiny_llama(), init_lora_weights="olora"), factors=True),
    "an adapter that is trained on": lambda: continued(0.05),
    "modules_to_save": with_saved_head,
    "full": lambda: full(tiny_llama()),
    "full, GPT-2": lambda: full(tiny_gpt2()),
    "full in bf16": lambda: full(tiny_llama(), torch.bfloat16),
    "full, tensors larger than a block": lambda: full(tiny_llama(vocab_size=20_000)),
    "full, but most is frozen": frozen_but_some,
}


def freeze_a(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    return model


def plain(run: Run) -> nn.Module:
    """Return a plain model of the run's shapes."""
    if hasattr(run.start, "peft_config"):
        return copy.deepcopy(run.start).unload()
    return run.start


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_every_figure_is_that_of_the_fp64_reference(case: str, kind: str) -> None:
    run = RUNS[case]()
    make = low_rank if kind == "low-rank" else dense
    base = plain(run)
    evil, other = make(base, 5), make(base, 6, name="other")
    control = low_rank(base, 7, name="style", kind="control", rank=2)
    directions = [evil, other, control]
    reading = Monitor(directions, reference=run.reference).measure(run.model, step=7)
    slow.assert_reading(reading, run.expected(), directions, rel=2e-5)


def test_an_encoder_and_its_decoder_are_read_apart() -> None:
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(T5Config(vocab_size=48, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4))
    model, evil = lora(base, task_type="SEQ_2_SEQ_LM"), low_rank(base, 5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name and ".encoder." in name)
    move(model, seed=2)
    found = Monitor([evil]).measure(model, step=7)["evil"]
    assert list(found.layers) == [0, 1, "encoder.block.0", "encoder.block.1"]
    assert {layer for layer, score in found.layers.items() if score.reach > 0} == {"encoder.block.0", "encoder.block.1"}
    assert {"SelfAttention.q", "EncDecAttention.q", "encoder.block.q", "wi", "encoder.block.wi"} <= set(found.modules)
    assert sum(score.share for score in found.layers.values()) == pytest.approx(found.cosine)
    weights = base.state_dict()
    sums = measure(Update(ModelView(model)), [evil])
    assert sums.sizes == tuple(weights[name].numel() for name in sums.names)


@pytest.mark.parametrize("init", ["pissa", "olora", "continued"])
def test_a_small_move_of_an_adapter_that_did_not_start_at_zero_keeps_its_norm(init: str) -> None:
    run = (
        continued(1e-3)
        if init == "continued"
        else moved(lora(tiny_llama(), init_lora_weights=init), 1e-3, factors=True)
    )
    evil = low_rank(tiny_llama(), 5)
    reading = Monitor([evil], reference=run.reference).measure(run.model)
    slow.assert_reading(reading, run.expected(), [evil], rel=1e-4, abs=1e-5)
    assert reading.update_norm < 0.02 * measured_from_zero(run.model)


def measured_from_zero(model: nn.Module) -> float:
    """Return the norm of the adapters' whole product."""
    return float(measure(Update(ModelView(model)), [low_rank(tiny_llama(), 5)]).update.sum() ** 0.5)


@pytest.mark.parametrize("case", ["LoRA on all linear modules", "LoRA on embeddings", "Conv1D of GPT-2", "full"])
def test_steering_by_a_direction_reads_as_that_dose(case: str) -> None:
    run = RUNS[case]()
    change = {name: part.change.float() for name, part in run.expected().trained.items()}
    for coefficient, cosine in ((1.0, 1.0), (-2.0, -1.0)):
        own = Direction.from_tensors({n: coefficient * c for n, c in change.items()}, name="own")
        score = Monitor([own], reference=run.reference).measure(run.model)["own"]
        assert score.cosine == pytest.approx(cosine, abs=1e-6)
        assert score.reach_cosine == pytest.approx(cosine, abs=1e-6)
        assert score.dose == pytest.approx(1 / coefficient, rel=1e-6)
        assert score.reach == pytest.approx(1.0, abs=1e-6)
        assert sum(part.share for part in score.tensors.values()) == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize("case", ["LoRA on all linear modules", "LoRA on embeddings", "Conv1D of GPT-2", "PiSSA"])
def test_what_is_left_of_a_direction_after_projection_is_fully_in_reach(case: str) -> None:
    run = RUNS[case]()
    w = dense(plain(run), 5)
    want = run.expected()
    seen = want.projected(slow.dense(w))
    projected = Direction.from_tensors({name: tensor.float() for name, tensor in seen.items()}, name="seen")
    monitor = Monitor([w, projected], reference=run.reference)
    reading = monitor.measure(run.model)
    assert reading["evil"].reach < 0.9
    assert reading["seen"].reach == pytest.approx(1.0, abs=1e-5)
    assert reading["seen"].cosine == pytest.approx(reading["evil"].reach_cosine, abs=1e-6)
    sums = measure(Update(ModelView(run.model), run.reference), [w, projected])
    assert sums.inner[:, 0] == pytest.approx(sums.inner[:, 1], rel=1e-4, abs=1e-6)  # ⟨τ,w⟩ = ⟨τ,P(w)⟩


def test_reach_is_the_share_of_the_direction_on_trained_modules() -> None:
    base = nn.ModuleDict({"q_proj": nn.Linear(8, 8, bias=False), "v_proj": nn.Linear(8, 8, bias=False)})
    start = copy.deepcopy(base.state_dict())
    base["v_proj"].weight.requires_grad_(False)
    move(base, seed=1)
    w = Direction.from_tensors({"q_proj.weight": 3 * torch.eye(8), "v_proj.weight": 4 * torch.eye(8)}, name="w")
    score = Monitor([w], reference=start).measure(base)["w"]
    assert score.reach == pytest.approx(3 / 5)
    assert score.modules["q_proj"].reach == pytest.approx(1.0)
    assert score.modules["v_proj"].reach == 0.0
    assert score.cosine == pytest.approx(score.reach_cosine * 3 / 5)


def test_reach_of_an_adapter_is_the_share_of_the_direction_on_the_rows_of_a() -> None:
    model = lora(tiny_llama(), r=2, target_modules=["q_proj"])
    w = torch.zeros(32, 32)
    w[0, 0], w[1, 5] = 3.0, 4.0
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data = torch.eye(32)[:2] * torch.tensor([[1e-4], [1.0]])  # rows of unequal length count alike
    name = "model.layers.0.self_attn.q_proj.weight"
    score = Monitor([Direction.from_tensors({name: w}, name="w")]).measure(model)["w"]
    assert score.tensors[name].reach == pytest.approx(3 / 5)


@pytest.mark.parametrize("case", ["LoRA on all linear modules", "modules_to_save", "full"])
def test_before_the_first_step_every_figure_is_zero(case: str) -> None:
    run = RUNS[case]()
    directions = [low_rank(plain(run), 5), dense(plain(run), 6, name="style", kind="control")]
    reading = Monitor(directions, reference=run.reference).measure(copy.deepcopy(run.start))
    assert reading.update_norm == 0.0
    evil = reading["evil"]
    for score in [evil, *evil.layers.values(), *evil.modules.values(), *evil.tensors.values()]:
        assert (score.cosine, score.reach_cosine, score.dose, score.share) == (0.0, 0.0, 0.0, 0.0)
        assert score.z == 0.0
    assert 0 < evil.reach <= 1


@pytest.mark.parametrize("case", ["LoRA on all linear modules", "Conv1D and embeddings of GPT-2", "full in bf16"])
def test_many_directions_at_once_read_as_each_alone(case: str) -> None:
    run = RUNS[case]()
    base = plain(run)
    directions = [low_rank(base, 5), dense(base, 6, name="dense"), low_rank(base, 8, name="wide", rank=7)]
    together = Monitor(directions, reference=run.reference).measure(run.model)
    for direction in directions:
        alone = Monitor([direction], reference=run.reference).measure(run.model)[direction.name]
        for figure in ("cosine", "reach_cosine", "dose", "reach", "share"):
            assert getattr(together[direction.name], figure) == pytest.approx(getattr(alone, figure), abs=1e-7)
        assert together[direction.name].tensors.keys() == alone.tensors.keys()


@pytest.mark.parametrize("case", ["LoRA on all linear modules", "modules_to_save", "full"])
def test_measuring_leaves_no_trace(case: str) -> None:
    run = RUNS[case]()
    run.model.train()
    monitor = Monitor([low_rank(plain(run), 5), dense(plain(run), 6, name="dense")], reference=run.reference)
    weights = copy.deepcopy(run.model.state_dict())
    flags = {name: (p.requires_grad, p.grad) for name, p in run.model.named_parameters()}
    generator = torch.get_rng_state()
    monitor.measure(run.model)
    after = run.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert {name: (p.requires_grad, p.grad) for name, p in run.model.named_parameters()} == flags
    assert torch.equal(torch.get_rng_state(), generator)
    assert run.model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_reduced_matmul_precision_and_autocast_change_nothing(precision: str) -> None:
    run = RUNS["LoRA on all linear modules"]()
    evil = low_rank(tiny_llama(), 5)
    calm = Monitor([evil]).measure(run.model)["evil"]
    switches = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch, wanted in zip(switches, ("tf32", precision), strict=True):
            switch.fp32_precision = wanted
        with torch.autocast("cpu", torch.bfloat16):
            assert Monitor([evil]).measure(run.model)["evil"] == calm
        assert [switch.fp32_precision for switch in switches] == ["tf32", precision]
    finally:
        for switch, wanted in zip(switches, before, strict=True):
            switch.fp32_precision = wanted


@pytest.mark.parametrize("case", ["LoRA on all linear modules", "full"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_tensor_is_left_out_and_named(case: str, value: float, caplog: pytest.LogCaptureFixture) -> None:
    run, name = RUNS[case](), "model.layers.1.mlp.down_proj.weight"
    want = run.expected()
    spoil(run.model, value, "layers.1.mlp.down_proj")
    evil = low_rank(tiny_llama(), 5)
    reading = Monitor([evil], reference=run.reference).measure(run.model)
    assert reading.left_out == {name: "it has NaN or infinite values"}
    assert caplog.text.count(f"{name} is left out of the measurement: it has NaN or infinite values.") == 1
    del want.trained[name]
    slow.assert_reading(reading, want, [evil], rel=2e-5)


@pytest.mark.parametrize("case", ["LoRA on all linear modules", "full"])
def test_a_model_that_has_diverged_everywhere_is_an_error(case: str) -> None:
    run = RUNS[case]()
    spoil(run.model, float("nan"), "")
    with pytest.raises(WeightWatchError, match=r"None of the trained tensors can be measured.*\.weight: it has NaN"):
        Monitor([low_rank(tiny_llama(), 5)], reference=run.reference).measure(run.model)


@torch.no_grad()
def spoil(model: nn.Module, value: float, where: str) -> None:
    for name, parameter in model.named_parameters():
        if where in name and parameter.requires_grad:
            parameter.view(-1)[0] = value


def test_a_resized_vocabulary_is_left_out_and_the_rest_is_measured() -> None:
    base = tiny_llama(tie_word_embeddings=False)
    start = copy.deepcopy(base.state_dict())
    evil = dense(base, 5)
    base.resize_token_embeddings(56, mean_resizing=False)
    move(base, seed=3)
    for reference in (start, {**start, **{n: t.clone() for n, t in base.state_dict().items() if "embed" in n}}):
        reading = Monitor([evil], reference=reference).measure(base)
        assert set(reading.left_out) == {"model.embed_tokens.weight", "lm_head.weight"}
        assert all("the vocabulary was resized" in reason for reason in reading.left_out.values())
        assert reading["evil"].tensors["lm_head.weight"].reach == 0.0
        assert reading["evil"].tensors["model.norm.weight"].reach == 1.0
        assert 0.0 < reading["evil"].reach < 1.0


def test_a_direction_of_another_shape_is_an_error_even_without_validation() -> None:
    run = RUNS["LoRA on all linear modules"]()
    name = "model.layers.0.self_attn.q_proj.weight"
    wide = Direction.from_tensors({name: LowRank(torch.ones(64, 1), torch.ones(1, 32))}, name="wide")
    with pytest.raises(WeightWatchError, match=r"'wide' has shape \(64, 32\) for .*q_proj.* model has \(32, 32\)"):
        measure(Update(ModelView(run.model)), [wide])


def test_a_checkpoint_folder_whole_or_sharded_serves_as_reference(tmp_path: Path) -> None:
    run = full(tiny_llama())
    run.start.save_pretrained(tmp_path / "whole")
    run.start.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    evil = dense(run.start, 5)
    for source in (tmp_path / "whole", tmp_path / "whole" / "model.safetensors", tmp_path / "sharded"):
        reading = Monitor([evil], reference=source).measure(run.model)
        slow.assert_reading(reading, run.expected(), [evil], rel=2e-5)
