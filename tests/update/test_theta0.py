import ast
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import MixtralConfig, MixtralForCausalLM

from tests.support.models import dense, lora, low_rank, move, tiny_llama
from tests.support.runs import full
from weightwatch import Monitor, Reading, WeightWatchError
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.local import whole
from weightwatch.update.snapshot import Snapshot
from weightwatch.update.theta0 import establish, recorded_adapters, restore, unrecoverable
from weightwatch.vectors import LowRank
from weightwatch.vectors.weights.checkpoint import Checkpoint


def measured(model: torch.nn.Module, reference: Reference) -> Reading:
    return Monitor([dense(tiny_llama(), 5)], reference=reference).measure(model)


def same(one: Reading, other: Reading) -> bool:
    return one.directions == other.directions and one.update_norm == other.update_norm


def note(folder: Path) -> dict[str, object]:
    return json.loads((folder / "reference.json").read_text())


def test_adapters_that_start_at_zero_need_no_copy(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    begun = establish(ModelView(model), tmp_path, Reference())
    move(model, seed=3)
    assert {key: note(tmp_path)[key] for key in ("weights", "adapters", "frozen_adapters")} == {
        "weights": "none",
        "adapters": False,
        "frozen_adapters": [],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["reference.json"]
    assert same(measured(model, begun), measured(model, restore(ModelView(model), tmp_path, Reference())))


@pytest.mark.parametrize("init", ["pissa", "olora", "continued"])
def test_adapters_that_do_not_are_copied_and_found_again(init: str, tmp_path: Path) -> None:
    model = lora(tiny_llama(), init_lora_weights=True if init == "continued" else init)
    if init == "continued":
        move(model, seed=9)
    begun = establish(ModelView(model), tmp_path, Reference())
    assert measured(model, begun).update_norm == 0.0
    move(model, seed=3)
    now = measured(model, begun)
    assert now.update_norm > 0.1
    assert same(now, measured(model, restore(ModelView(model), tmp_path, Reference())))


def test_a_copied_start_keeps_the_form_of_embedding_adapters(tmp_path: Path) -> None:
    model = lora(tiny_llama(tie_word_embeddings=False), target_modules=["embed_tokens"])
    move(model, seed=9)
    begun = establish(ModelView(model), tmp_path, Reference())
    (kept,) = Update(ModelView(model), begun).values()
    assert isinstance(kept, LowRank)
    assert (kept.transposed, kept.limited) == (True, "left")
    move(model, seed=3)
    assert same(measured(model, begun), measured(model, restore(ModelView(model), tmp_path, Reference())))


def test_a_base_checkpoint_that_equals_the_model_is_not_copied(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = type(tiny_llama()).from_pretrained(tmp_path / "base")
    begun = establish(ModelView(model), tmp_path / "run", Reference())
    assert note(tmp_path / "run")["weights"] == "checkpoint"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["reference.json"]
    move(model, seed=3)
    assert same(measured(model, begun), measured(model, restore(ModelView(model), tmp_path / "run", Reference())))


def test_a_base_whose_experts_lie_on_disk_one_by_one_is_not_copied(tmp_path: Path) -> None:
    """Where transformers fuses tensors as it loads them, θ₀ is read from the stored ones all the same."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 1, "vocab_size": 40, "num_local_experts": 3}
    MixtralForCausalLM(MixtralConfig(**shape, **experts)).save_pretrained(tmp_path / "base")
    model = MixtralForCausalLM.from_pretrained(tmp_path / "base")
    fused = "model.layers.0.mlp.experts.gate_up_proj"
    assert fused in dict(model.named_parameters())
    assert fused not in Checkpoint(tmp_path / "base")
    w = dense(model, 5)
    begun = establish(ModelView(model), tmp_path / "run", Reference())
    assert note(tmp_path / "run")["weights"] == "checkpoint"
    monitor = Monitor([w], reference=begun)
    assert monitor.measure(model).update_norm == 0.0
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    move(model, seed=3)
    for reference in (begun, restore(ModelView(model), tmp_path / "run", Reference()), tmp_path / "base"):
        reading = Monitor([w], reference=reference).measure(model)
        assert same(reading, Monitor([w], reference=before).measure(model))
        assert reading["evil"].tensors[fused].cosine != 0.0


def test_the_base_is_found_again_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_llama().save_pretrained("base")
    model = type(tiny_llama()).from_pretrained("base")
    establish(ModelView(model), tmp_path / "run", Reference())
    monkeypatch.chdir("/")
    assert measured(model, restore(ModelView(model), tmp_path / "run", Reference())).update_norm == 0.0


def test_a_model_that_was_changed_after_loading_is_copied(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = type(tiny_llama()).from_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] += 1e-3
    start = {name: parameter.clone() for name, parameter in model.named_parameters()}
    begun = establish(ModelView(model), tmp_path / "run", Reference())
    assert note(tmp_path / "run")["weights"] == "snapshot"
    kept = Snapshot(tmp_path / "run")
    assert all(torch.equal(kept.read(name, whole(tuple(tensor.shape))), tensor) for name, tensor in start.items())
    move(model, seed=3)
    assert same(measured(model, begun), measured(model, restore(ModelView(model), tmp_path / "run", Reference())))


def test_a_model_of_no_checkpoint_is_copied(tmp_path: Path) -> None:
    establish(ModelView(tiny_llama()), tmp_path, Reference())
    assert note(tmp_path)["weights"] == "snapshot"


def test_only_what_is_trained_is_copied(tmp_path: Path) -> None:
    model = tiny_llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name)
    establish(ModelView(model), tmp_path, Reference())
    kept = Snapshot(tmp_path)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if name in kept] == [name for name in names if "layers.1.mlp" in name]


def test_a_named_reference_is_taken_at_its_word_and_asked_for_again(tmp_path: Path) -> None:
    model = tiny_llama()
    given = Reference.of({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert establish(ModelView(model), tmp_path, given).weights is given.weights
    assert note(tmp_path)["weights"] == "given"
    assert restore(ModelView(model), tmp_path, given).weights is given.weights
    with pytest.raises(WeightWatchError, match=r"started with an explicit reference=\. Pass the same reference="):
        restore(ModelView(model), tmp_path, Reference())


def test_a_run_that_began_unwatched_is_measured_from_its_base_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = lora(tiny_llama())
    move(model, seed=3)
    found = restore(ModelView(model), tmp_path, Reference())
    assert found == Reference()
    assert "has no reference.json: the run was started without weightwatch, or its record is elsewhere" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weights": "none"}', '"x"'])
def test_a_damaged_note_is_named_with_the_way_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(WeightWatchError, match=r"reference\.json is damaged .* Pass reference="):
        restore(ModelView(lora(tiny_llama())), tmp_path, Reference())


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text('{"weights": "checkpoint", "path": "/nowhere/base", "adapters": false}')
    with pytest.raises(WeightWatchError, match="read from /nowhere/base, which no longer exists"):
        restore(ModelView(tiny_llama()), tmp_path, Reference())


def test_a_copy_that_is_gone_or_cut_short_is_named(tmp_path: Path) -> None:
    model = tiny_llama()
    establish(ModelView(model), tmp_path, Reference())
    (copy,) = tmp_path.glob("*.safetensors")
    copy.write_bytes(copy.read_bytes()[:1000])
    with pytest.raises(WeightWatchError, match=r"reference-00000-of-00001\.safetensors can't be read"):
        restore(ModelView(model), tmp_path, Reference())
    copy.unlink()
    with pytest.raises(WeightWatchError, match=r"copy of θ₀ that this run wrote to .* is gone"):
        restore(ModelView(model), tmp_path, Reference())


def test_fixing_the_start_changes_no_weight_and_draws_no_random_number(tmp_path: Path) -> None:
    model = lora(tiny_llama(), init_lora_weights="pissa")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    establish(ModelView(model), tmp_path, Reference())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_moving_on_does_not_move_the_start(tmp_path: Path) -> None:
    model = lora(tiny_llama(), init_lora_weights="pissa")
    begun = establish(ModelView(model), tmp_path, Reference())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    w = low_rank(tiny_llama(), 5)
    assert Monitor([w], reference=begun).measure(model).update_norm > 1.0


def test_saved_copies_that_are_trained_further_are_measured_from_where_they_were(tmp_path: Path) -> None:
    model = lora(tiny_llama(tie_word_embeddings=False), modules_to_save=["lm_head"])
    move(model, seed=1)
    reference = establish(ModelView(model), tmp_path, Reference())
    monitor = Monitor([low_rank(tiny_llama(), 5)], reference=reference)
    assert monitor.measure(model).update_norm == 0
    assert (
        Monitor(monitor.directions, reference=restore(ModelView(model), tmp_path, Reference()))
        .measure(model)
        .update_norm
        == 0
    )
    move(model, seed=2)
    assert monitor.measure(model).update_norm > 0


def test_full_parameters_are_those_whose_start_the_model_does_not_hold() -> None:
    model = lora(tiny_llama(tie_word_embeddings=False), modules_to_save=["lm_head"])
    assert set(unrecoverable(ModelView(model))) == {"lm_head.weight"}  # its original may be initialised anew
    model.base_model.model.model.norm.weight.requires_grad_(True)
    assert set(unrecoverable(ModelView(model))) == {"lm_head.weight", "model.norm.weight"}
    assert set(unrecoverable(ModelView(tiny_llama()))) == {name for name, _ in tiny_llama().named_parameters()}


def test_a_base_that_is_overwritten_between_two_runs_is_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = type(tiny_llama()).from_pretrained(tmp_path / "base")
    establish(ModelView(model), tmp_path / "run", Reference())
    move(model, seed=3)
    restore(ModelView(model), tmp_path / "run", Reference())
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(WeightWatchError, match=r"θ₀ of the trained tensors \(.*base\) has other values than when"):
        restore(ModelView(model), tmp_path / "run", Reference())


def test_another_reference_than_at_the_start_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    given, other = (Reference.of(dict(tiny_llama(seed).state_dict())) for seed in (0, 1))
    establish(ModelView(model), tmp_path, given)
    restore(ModelView(model), tmp_path, given)
    with pytest.raises(WeightWatchError, match=r"θ₀ of the trained tensors \(given\) has other values"):
        restore(ModelView(model), tmp_path, other)


def test_adapters_on_another_base_than_at_the_start_are_refused(tmp_path: Path) -> None:
    """As when the model is loaded from a checkpoint into which the adapter was merged."""
    model = lora(tiny_llama())
    establish(ModelView(model), tmp_path, Reference())
    move(model, seed=3)
    restore(ModelView(model), tmp_path, Reference())
    again = lora(model.merge_and_unload())
    with pytest.raises(WeightWatchError, match="frozen base of the model has other values than when the run began"):
        restore(ModelView(again), tmp_path, Reference())


def test_a_base_in_another_precision_is_not_compared_which_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    establish(ModelView(lora(tiny_llama())), tmp_path, Reference())
    restore(ModelView(lora(tiny_llama().bfloat16())), tmp_path, Reference())
    assert "has other tensors, or another precision, than when the run began" in caplog.text


def test_new_rows_of_a_vocabulary_may_be_drawn_anew(tmp_path: Path) -> None:
    for seed, fix in ((0, establish), (1, restore)):
        base = tiny_llama()
        torch.manual_seed(seed)
        base.resize_token_embeddings(5000)
        fix(ModelView(lora(base)), tmp_path, Reference())


def test_a_checkpoint_of_the_run_itself_is_copied_since_it_may_be_deleted(tmp_path: Path) -> None:
    checkpoint = full(tmp_path / "out" / "checkpoint-5", step=5)
    model = type(tiny_llama()).from_pretrained(checkpoint)
    establish(ModelView(model), tmp_path / "out" / "weightwatch", Reference())
    assert note(tmp_path / "out" / "weightwatch")["weights"] == "snapshot"
    establish(ModelView(model), tmp_path / "other" / "weightwatch", Reference())
    assert note(tmp_path / "other" / "weightwatch")["weights"] == "checkpoint"


@pytest.mark.parametrize("step", [5, None], ids=["a checkpoint of training", "weights that are equal"])
def test_a_model_loaded_from_where_it_resumes_is_no_start(step: int | None, tmp_path: Path) -> None:
    model = type(tiny_llama()).from_pretrained(full(tmp_path / "out" / "model", step=step))
    if step is not None:
        move(model, seed=1)
    with pytest.raises(WeightWatchError, match=r"was loaded from .*model, which has the weights of the run.*Pass"):
        restore(ModelView(model), tmp_path / "out" / "weightwatch", Reference())
    given = Reference.of(tiny_llama().state_dict())
    assert restore(ModelView(model), tmp_path / "out" / "weightwatch", given).weights is given.weights


def test_an_adapter_that_did_not_start_at_zero_can_not_be_taken_up_unwatched(tmp_path: Path) -> None:
    for init in ("'pissa'", "False"):
        model = lora(tiny_llama(), init_lora_weights=ast.literal_eval(init))
        with pytest.raises(WeightWatchError, match=rf"has no reference\.json.*={init} does not start at zero"):
            restore(ModelView(model), tmp_path, Reference())


def test_frozen_adapters_are_recorded_but_are_no_start_of_a_saved_one(tmp_path: Path) -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("mine", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "mine"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".mine." in name)
    begun = establish(ModelView(model), tmp_path, Reference())
    assert note(tmp_path)["frozen_adapters"] == ["default"]
    assert any(".default." in name for name in begun.adapters)
    assert recorded_adapters(tmp_path) == {}
    move(model, seed=3)
    found = restore(ModelView(model), tmp_path, Reference())
    assert same(measured(model, begun), measured(model, found))
    model.set_adapter("mine")
    assert same(measured(model, begun), measured(model, found))
