import copy
import gc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from tests import oracle as slow
from tests.support.models import dense, lora, low_rank, move, starts, tiny_llama
from weightwatch.monitor import Monitor
from weightwatch.update.reference import Reference
from weightwatch.vectors import Direction, Fingerprint, WeightWatchError


def of_base(base: LlamaForCausalLM, **metadata: object) -> Direction:
    """Return a direction that knows its base."""
    weights = {name: p.detach() for name, p in base.named_parameters()}
    fingerprint = Fingerprint.of(weights, weights.__getitem__)
    return Direction.from_tensors(
        low_rank(base, 5).deltas, name="evil", metadata={"base": "org/base", "fingerprint": fingerprint, **metadata}
    )


def test_a_reading_has_step_time_and_every_direction(tmp_path: Path) -> None:
    style = low_rank(tiny_llama(), 6, name="style").save(tmp_path)
    model = lora(tiny_llama())
    move(model, seed=1)
    began = datetime.now(UTC)
    reading = Monitor([low_rank(tiny_llama(), 5), style]).measure(model, step=40)
    assert reading.step == 40
    assert 0 <= (datetime.fromisoformat(reading.time) - began).total_seconds() + 0.001 < 60
    assert set(reading.directions) == {"evil", "style"}
    assert reading.checkpoint is None


def test_a_fully_trained_model_is_compared_with_the_checkpoint_it_was_loaded_from(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    start = copy.deepcopy(model)
    move(model, seed=1)
    evil = dense(start, 5)
    reading = Monitor([evil]).measure(model)
    names = [name for name, _ in model.named_parameters()]
    slow.assert_reading(reading, slow.expected(model, start, names), [evil], rel=2e-5)


def test_a_fully_trained_model_from_nowhere_needs_a_reference() -> None:
    with pytest.raises(
        WeightWatchError, match=r"config names nothing, and no checkpoint of that name is on this machine\. Pass"
    ):
        Monitor([dense(tiny_llama(), 5)]).measure(tiny_llama())


def test_a_wrapped_model_reads_as_the_model_within() -> None:
    model = lora(tiny_llama())
    move(model, seed=1)
    monitor = Monitor([low_rank(tiny_llama(), 5)])
    plain = monitor.measure(model)
    assert monitor.measure(torch.compile(model)).directions == plain.directions
    assert monitor.measure(torch.nn.ModuleDict({"module": model})).directions == plain.directions


def test_trained_tensors_that_a_direction_lacks_count_in_the_norm_of_the_update() -> None:
    model = lora(tiny_llama())
    move(model, seed=1)
    whole = low_rank(tiny_llama(), 5)
    some = Direction.from_tensors({n: d for n, d in whole.deltas.items() if "q_proj" in n}, name="some")
    reading = Monitor([whole, some]).measure(model)
    want = slow.expected(model, lora(tiny_llama()))
    slow.assert_reading(reading, want, [whole, some], rel=2e-5)
    assert reading["some"].modules["q_proj"].cosine == pytest.approx(reading["evil"].modules["q_proj"].cosine)
    assert abs(reading["some"].cosine) < abs(reading["some"].modules["q_proj"].cosine)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_direction_of_the_models_base_is_let_through(dtype: torch.dtype) -> None:
    evil = of_base(tiny_llama())
    model = lora(tiny_llama().to(dtype), modules_to_save=["norm"])
    move(model, seed=1, size=0.5)
    assert Monitor([evil]).measure(model)["evil"].reach > 0


def test_a_model_whose_adapter_did_not_start_at_zero_is_known_by_its_start() -> None:
    evil = of_base(tiny_llama())
    model = lora(tiny_llama(), init_lora_weights="pissa", r=16)
    reference = Reference(adapters=starts(model))
    move(model, seed=1)
    assert Monitor([evil], reference=reference).measure(model)["evil"].reach > 0


def test_a_direction_of_another_base_is_refused() -> None:
    model = lora(tiny_llama(seed=3))
    with pytest.raises(WeightWatchError, match=r"'evil' was built from org/base, not from this model: only \d+ of \d+"):
        Monitor([of_base(tiny_llama())]).measure(model)


def test_a_direction_of_other_shapes_is_refused() -> None:
    model = lora(tiny_llama(hidden_size=64))
    with pytest.raises(WeightWatchError, match=r"'evil' has shape .*32.* for model\.layers.* the model has .*64"):
        Monitor([low_rank(tiny_llama(), 5)]).measure(model)
    with pytest.raises(WeightWatchError, match=r"has shape \(.*64.*\) where the direction's base has"):
        Monitor([of_base(tiny_llama())]).measure(model)


def test_a_direction_that_shares_no_tensor_with_training_is_refused() -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    down = Direction.from_tensors({"model.layers.0.mlp.down_proj.weight": torch.ones(32, 40)}, name="down")
    with pytest.raises(
        WeightWatchError, match=r"'down' and the trained .* no tensor in common.*Train the modules .*\(down_proj\)"
    ):
        Monitor([down]).measure(model)


def test_each_model_is_checked_anew() -> None:
    monitor = Monitor([of_base(tiny_llama())])
    model = lora(tiny_llama())
    monitor.measure(model)
    other = lora(tiny_llama(seed=3))
    with pytest.raises(WeightWatchError, match="was built from org/base"):
        monitor.measure(other)
    monitor.measure(model)


def test_nothing_to_watch_is_an_error() -> None:
    with pytest.raises(WeightWatchError, match="Nothing to watch"):
        Monitor([])


def test_two_directions_of_one_name_are_an_error() -> None:
    with pytest.raises(WeightWatchError, match="Two directions are called 'evil'"):
        Monitor([low_rank(tiny_llama(), 1), dense(tiny_llama(), 2)])


def test_an_unknown_direction_or_reference_is_an_error() -> None:
    with pytest.raises(WeightWatchError, match="Unknown direction 'evli'"):
        Monitor(["evli"])
    with pytest.raises(WeightWatchError, match="No weights at /nowhere"):
        Monitor([low_rank(tiny_llama(), 1)], reference="/nowhere")


def test_a_live_state_dict_is_no_reference() -> None:
    model = tiny_llama()
    with pytest.raises(WeightWatchError, match=r"shares the model.s own memory.*Pass a copy from before"):
        Monitor([dense(model, 5)], reference=model.state_dict()).measure(model)


def test_a_tied_weight_counts_once_though_the_direction_names_it_twice() -> None:
    start, model = tiny_llama(), tiny_llama()
    move(model, seed=1)
    theta = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    evil = Direction.from_contrast(model.state_dict(), theta, name="evil")
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= set(evil.deltas)
    reading = Monitor([evil], reference=theta).measure(model)
    assert reading["evil"].cosine == pytest.approx(1, abs=1e-6)
    assert reading["evil"].dose == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_measured_from_its_start_or_not_at_all(kind: str) -> None:
    model = lora(tiny_llama(), init_lora_weights=kind)
    evil = low_rank(tiny_llama(), 5)
    with pytest.raises(WeightWatchError, match=rf"init_lora_weights={kind!r}.*Monitor\.start\(model\)"):
        Monitor([evil]).measure(model)
    monitor = Monitor([evil])
    monitor.start(model)
    assert monitor.measure(model).update_norm == 0
    move(model, seed=1)
    assert monitor.measure(model).update_norm > 0


def test_another_model_is_checked_anew() -> None:
    monitor = Monitor([of_base(tiny_llama(0))])
    first = lora(tiny_llama(0))
    move(first, seed=1)
    assert monitor.measure(first).update_norm > 0
    with pytest.raises(WeightWatchError, match="sampled weights agree"):
        monitor.measure(lora(tiny_llama(3)))


def test_nothing_that_was_found_out_for_one_model_is_taken_for_another(tmp_path: Path) -> None:
    models = []
    for seed in (0, 5):
        tiny_llama(seed).save_pretrained(tmp_path / str(seed))
        models.append(LlamaForCausalLM.from_pretrained(tmp_path / str(seed)))
    monitor = Monitor([dense(models[0], 2)])
    move(models[0], seed=1)
    first = monitor.measure(models[0])
    assert monitor.measure(models[1]).update_norm == 0  # from its own checkpoint
    assert monitor.measure(models[0]).update_norm == first.update_norm

    whole = tiny_llama(tie_word_embeddings=False)
    theta = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    part = copy.deepcopy(whole)
    for name, parameter in part.named_parameters():
        parameter.requires_grad_("q_proj" in name or "lm_head" in name)
    monitor = Monitor([dense(whole, 2)], reference=theta)
    for model in (whole, tiny_llama(), part):  # trains more; ties its head
        move(model, seed=3)
        monitor.measure(model)
    fresh = Monitor([dense(whole, 2)], reference=theta).measure(part)
    assert monitor.measure(part).directions == fresh.directions


def test_an_adapter_that_shares_its_start_with_a_direction_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for side, move_seed in (("positive", 1), ("negative", 2)):
        model = lora(tiny_llama(), seed=7, r=2)
        move(model, seed=move_seed, size=0.01)
        model.save_pretrained(tmp_path / side)
    evil = Direction.from_contrast(tmp_path / "positive", tmp_path / "negative", name="evil")
    for seed, told in ((8, False), (7, True)):
        caplog.clear()
        Monitor([evil]).measure(lora(tiny_llama(), seed=seed, r=2))
        assert any("share their random start" in record.message for record in caplog.records) == told


def test_trained_tokens_have_no_random_start_to_share(caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_llama(tie_word_embeddings=False)
    rows = torch.zeros(48, 32)
    rows[[3, 4]] = 1.0
    evil = Direction.from_tensors({"model.embed_tokens.weight": rows}, name="evil")
    model = get_peft_model(base, TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[3, 4]))
    assert Monitor([evil]).measure(model)["evil"].reach == pytest.approx(1.0)
    assert "share their random start" not in caplog.text


@pytest.mark.parametrize("modules", [["q_proj", "lm_head"], ["lm_head"]])
def test_an_adapter_on_a_tied_head_is_measured_as_a_weight_of_its_own(modules: list[str]) -> None:
    base = tiny_llama()
    model = lora(base, target_modules=modules)
    move(model, seed=1)
    now, start = slow.merged(model), slow.merged(base)
    moved = {name: (now[name] - start[name]).float() for name in now if not torch.equal(now[name], start[name])}
    del moved["model.embed_tokens.weight"]  # merging changes the memory of both; in training it looks up the base
    reading = Monitor([Direction.from_tensors(moved, name="w")]).measure(model)
    assert reading["w"].cosine == pytest.approx(1, abs=1e-6)
    assert reading["w"].dose == pytest.approx(1, abs=1e-5)


def test_a_direction_on_a_tied_head_has_nothing_in_common_with_training_the_embedding() -> None:
    start = tiny_llama()
    model = copy.deepcopy(start)
    move(model, seed=1)
    evil = Direction.from_tensors({"lm_head.weight": torch.ones(48, 32)}, name="evil")
    with pytest.raises(WeightWatchError, match=r"no tensor in common: the direction has lm_head\.weight"):
        Monitor([evil], reference={n: p.detach() for n, p in start.named_parameters()}).measure(model)


def merge(model: torch.nn.Module) -> None:
    """Merge the adapters into the base and begin them anew, as ReLoRA does."""
    with torch.no_grad():
        for module in model.modules():
            if "default" in getattr(module, "lora_B", {}):
                module.get_base_layer().weight += module.get_delta_weight("default")
                module.lora_B["default"].weight.zero_()


@pytest.mark.parametrize("again", [False, True], ids=["anew", "continued"])
def test_an_adapter_that_is_merged_in_mid_run_is_measured_with_what_was_merged(again: bool, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = lora(LlamaForCausalLM.from_pretrained(tmp_path), init_lora_weights=not again)
    start, evil = copy.deepcopy(model), low_rank(tiny_llama(), 5)
    monitor = Monitor([evil])
    monitor.start(model)
    move(model, seed=1)
    monitor.measure(model)
    merge(model)
    for seed in (2, 3):
        move(model, seed=seed)
        reading = monitor.measure(model)
        now, before = slow.merged(model), slow.merged(start)
        change = {n: now[n] - before[n] for n in evil.deltas if "embed" not in n}
        norm = sum(float(t.square().sum()) for t in change.values()) ** 0.5
        assert reading.update_norm == pytest.approx(norm, rel=1e-5)
        inner = sum(float((t * evil.deltas[n].dense().double()).sum()) for n, t in change.items())
        size = sum(evil.squares.values()) ** 0.5
        assert reading["evil"].cosine == pytest.approx(inner / norm / size, abs=1e-6)


def test_a_merge_into_a_base_that_is_nowhere_else_is_refused_at_every_check() -> None:
    model = lora(tiny_llama())
    monitor = Monitor([low_rank(tiny_llama(), 5)])
    monitor.start(model)
    move(model, seed=1)
    monitor.measure(model)
    merge(model)
    for seed in (2, 3):
        move(model, seed=seed)
        with pytest.raises(WeightWatchError, match=r"frozen weights have changed .* \(model\.layers.*merged .*ReLoRA"):
            monitor.measure(model)


def test_a_frozen_weight_beside_the_adapters_that_changes_is_left_out() -> None:
    model = lora(tiny_llama())
    monitor = Monitor([low_rank(tiny_llama(), 5)])
    move(model, seed=1)
    before = monitor.measure(model)
    with torch.no_grad():
        model.base_model.model.model.norm.weight += 1.0
    after = monitor.measure(model)
    assert after.left_out == {"model.norm.weight": "it is frozen, and has changed since the run began"}
    assert after.update_norm == before.update_norm


def test_a_layer_that_is_thawed_in_mid_run_is_left_out_of_every_later_check() -> None:
    model = tiny_llama()
    frozen = model.model.layers[0].requires_grad_(False)
    theirs = {f"model.layers.0.{name}" for name, _ in frozen.named_parameters()}
    start = {name: p.detach().clone() for name, p in model.named_parameters() if name not in theirs}
    monitor = Monitor([low_rank(tiny_llama(), 5)], reference=start)
    move(model, seed=1)
    before = monitor.measure(model)
    frozen.requires_grad_(True)
    for seed in (2, 3):
        with torch.no_grad():
            for parameter in frozen.parameters():
                parameter += 0.01 * seed
        after = monitor.measure(model)
        assert after.left_out.keys() == theirs
        assert after.update_norm == before.update_norm


def test_merging_for_a_moment_is_measured_without_its_rounding_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = lora(tiny_llama().bfloat16())
    monitor = Monitor([low_rank(tiny_llama(), 5)])
    monitor.start(model)
    move(model, seed=1, size=0.005)
    before = monitor.measure(model)
    model.merge_adapter()
    model.unmerge_adapter()
    for _ in range(2):
        assert monitor.measure(model).update_norm == before.update_norm
    assert caplog.text.count("frozen weights have changed by rounding") == 1


def test_a_base_checkpoint_that_is_overwritten_in_mid_run_is_refused_at_every_check(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = copy.deepcopy(LlamaForCausalLM.from_pretrained(tmp_path))
    monitor = Monitor([dense(tiny_llama(), 5)], reference=tmp_path)
    monitor.measure(model)
    move(model, seed=1)
    tiny_llama(seed=1).save_pretrained(tmp_path / "new")
    with (tmp_path / "model.safetensors").open("r+b") as opened:
        opened.write((tmp_path / "new" / "model.safetensors").read_bytes())
    for _ in range(2):
        with pytest.raises(WeightWatchError, match=r"model\.safetensors was written to while it was in use"):
            monitor.measure(model)


def test_a_base_checkpoint_that_is_replaced_in_mid_run_is_read_as_it_was(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = copy.deepcopy(LlamaForCausalLM.from_pretrained(tmp_path))
    monitor = Monitor([dense(tiny_llama(), 5)], reference=tmp_path)
    monitor.measure(model)
    move(model, seed=1)
    before = monitor.measure(model)
    tiny_llama(seed=1).save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").replace(tmp_path / "model.safetensors")
    assert monitor.measure(model).update_norm == before.update_norm


def test_a_state_dict_that_changes_in_mid_run_is_refused() -> None:
    model = tiny_llama()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monitor = Monitor([dense(model, 5)], reference=start)
    monitor.measure(model)
    start["model.norm.weight"] += 1.0
    with pytest.raises(WeightWatchError, match=r"θ₀ has changed since the run began: model\.norm\.weight"):
        monitor.measure(model)


def test_a_resized_vocabulary_and_a_missing_head_are_not_compared_with_the_base_of_a_direction() -> None:
    base = tiny_llama(tie_word_embeddings=False)
    weights = {name: p.detach() for name, p in base.named_parameters()}
    fingerprint = Fingerprint.of(weights, weights.__getitem__)
    evil = Direction.from_tensors(
        dense(base, 5).deltas, name="evil", metadata={"base": "org/base", "fingerprint": fingerprint}
    )
    larger = copy.deepcopy(base)
    larger.resize_token_embeddings(60)
    start = {name: tensor.clone() for name, tensor in larger.state_dict().items()}
    move(larger, seed=1)
    reading = Monitor([evil], reference=start).measure(larger)
    assert set(reading.left_out) == {"model.embed_tokens.weight", "lm_head.weight"}
    scoring = LlamaForSequenceClassification(base.config)
    scoring.model.load_state_dict(base.model.state_dict())
    assert Monitor([evil]).measure(lora(scoring, task_type="SEQ_CLS"))["evil"].reach > 0
    with pytest.raises(WeightWatchError, match="sampled weights agree"):
        Monitor([evil]).measure(lora(LlamaForSequenceClassification(base.config), task_type="SEQ_CLS"))


def test_scratch_does_not_depend_on_the_default_precision() -> None:
    models = [
        lora(tiny_llama(tie_word_embeddings=False), target_modules=["q_proj", "embed_tokens"], init_lora_weights=False),
        lora(tiny_llama(tie_word_embeddings=False), target_modules=["q_proj"], use_dora=True),
        lora(tiny_llama(tie_word_embeddings=False), target_modules=["q_proj"], trainable_token_indices=[1, 5]),
    ]
    for model in models:
        monitor = Monitor([low_rank(tiny_llama(), 5)])
        monitor.start(model)
        move(model, seed=1)
        want = monitor.measure(model)
        torch.set_default_dtype(torch.bfloat16)
        try:
            found = monitor.measure(model)
        finally:
            torch.set_default_dtype(torch.float32)
        assert (found.update_norm, found.directions) == (want.update_norm, want.directions)


@pytest.mark.parametrize("collected", [True, False])
def test_the_collector_of_cycles_is_paused_while_a_model_is_measured_and_then_as_before(
    collected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a trainer a full pass takes longer than the check."""
    model, seen = tiny_llama(), []
    monitor = Monitor([dense(model, 1)], reference={name: p.detach().clone() for name, p in model.named_parameters()})

    def figures(*given: Any, **named: Any) -> None:
        seen.append(gc.isenabled())
        raise ValueError

    monkeypatch.setattr("weightwatch.monitor.read", figures)
    before = gc.isenabled()
    (gc.enable if collected else gc.disable)()
    try:
        with pytest.raises(ValueError):  # noqa: PT011 - it is ours
            monitor.measure(model)
        after = gc.isenabled()
    finally:
        (gc.enable if before else gc.disable)()
    assert (seen, after) == ([False], collected)
