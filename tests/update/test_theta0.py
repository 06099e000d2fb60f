import json
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tests.support.models import dense, lora, low_rank, move, tiny_llama
from weightwatch import Monitor, Reading, WeightWatchError
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.local import whole
from weightwatch.update.snapshot import Snapshot
from weightwatch.update.theta0 import establish, restore, unrecoverable
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
    assert "has no reference.json, since the run was started without weightwatch" in caplog.text


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
