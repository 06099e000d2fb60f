"""Cosines between directions and task vectors, on files that real models left."""

from math import isnan
from pathlib import Path
from re import escape

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import oracle as slow
from tests.support.models import dense, lora, low_rank, move, tiny_gpt2, tiny_llama
from tests.support.models import weights_on_disk as weights
from tests.vectors.weights.test_conversion import store
from weightwatch.comparison import Comparison
from weightwatch.vectors import Direction, Fingerprint, WeightWatchError


def compared(*sources: object, base: Path | str | None = None) -> Comparison:
    return Comparison.of([str(source) for source in sources], None if base is None else str(base))


def refused(reason: str, *sources: object, base: Path | str | None = None) -> None:
    with pytest.raises(WeightWatchError, match=escape(reason)):
        compared(*sources, base=base)


def fine_tune(folder: Path, seed: int) -> Path:
    model = tiny_llama()
    move(model, seed)
    model.save_pretrained(folder)
    return folder


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    product = sum(float((a[name] * b[name]).sum()) for name in a.keys() & b.keys())
    norms = [sum(float(t.square().sum()) for t in side.values()) ** 0.5 for side in (a, b)]
    return product / (norms[0] * norms[1])


def test_the_matrix_holds_directions_checkpoints_and_adapters(
    base: Path, evil: Path, style: Path, tmp_path: Path
) -> None:
    tuned = fine_tune(tmp_path / "tuned", 3)
    model = lora(AutoModelForCausalLM.from_pretrained(base))
    move(model, 4)
    model.save_pretrained(tmp_path / "adapter")
    found = compared(evil, tuned, style, tmp_path / "adapter", base=base)
    assert found.names == ["evil", "tuned", "style", "adapter"]
    start, after = weights(base), weights(tuned)
    merged = slow.merged(model)
    taus = [
        slow.dense(Direction.load(evil)),
        {name: after[name] - start[name] for name in start},
        slow.dense(Direction.load(style)),
        {name: merged[name] - start[name] for name in start if name != "model.embed_tokens.weight"},
    ]
    for i, a in enumerate(taus):
        for j, b in enumerate(taus):
            assert found.cosines[i][j] == pytest.approx(cosine(a, b), abs=1e-5)


def test_a_checkpoint_that_stores_the_tied_head_too_counts_it_once(base: Path, evil: Path, tmp_path: Path) -> None:
    folders = []
    for name, seed in (("start", None), ("tuned", 3)):
        folder = tmp_path / name
        tiny_llama().save_pretrained(folder) if seed is None else fine_tune(folder, seed)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
        folders.append(folder)
    twice = compared(evil, folders[1], base=folders[0])
    once = compared(evil, fine_tune(tmp_path / "plain" / "tuned", 3), base=base)
    assert twice == once


def test_checkpoints_under_other_names_meet_directions(tmp_path: Path) -> None:
    store(tiny_gpt2(), tmp_path / "base")
    model = tiny_gpt2()
    move(model, 3)
    store(model, tmp_path / "tuned")
    evil = dense(tiny_gpt2(), 1).save(tmp_path / "evil")
    start = {name: p.detach().double() for name, p in tiny_gpt2().named_parameters()}
    tau = {name: p.detach().double() - start[name] for name, p in model.named_parameters()}
    found = compared(evil, tmp_path / "tuned", base=tmp_path / "base")
    assert found.cosines[0][1] == pytest.approx(cosine(slow.dense(Direction.load(evil)), tau), abs=1e-6)


def test_packaged_directions_go_by_their_names() -> None:
    found = compared("evil", "evil-witness", "style")
    assert found.cosines[0][1] > 0.3 > abs(found.cosines[0][2])


def test_two_without_a_common_tensor_have_no_cosine_and_two_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    one, other = (
        Direction.from_tensors({f"{name}.weight": torch.ones(2, 2)}, name="evil").save(tmp_path / name / "evil")
        for name in ("a", "b")
    )
    found = compared(one, other)
    assert isnan(found.cosines[0][1])
    assert found.to_json() == {
        "names": [str(one), str(other)],
        "norms": [2.0, 2.0],
        "cosines": [[1.0, None], [None, 1.0]],
    }


def test_what_cannot_be_compared_is_an_error(base: Path, evil: Path, tmp_path: Path) -> None:
    tuned = fine_tune(tmp_path / "tuned", 3)
    refused("is a full checkpoint. Pass --base, the model", evil, tuned)
    refused("org/none is not a local folder, nor a model in the Hub's cache", tuned, base="org/none")
    refused("nowhere is not a local folder, a packaged direction or a Hub id", evil, "nowhere")
    other = {name: p.detach() for name, p in tiny_llama(5).named_parameters()}
    foreign = Direction.from_tensors(
        low_rank(tiny_llama(), 1).deltas,
        name="foreign",
        metadata={"base": "org/other", "fingerprint": Fingerprint.of(other, other.__getitem__)},
    ).save(tmp_path / "foreign")
    refused("'foreign' was built from org/other, not from", foreign, tuned, base=base)
    own = Direction.from_fine_tune(tuned, base, name="own").save(tmp_path / "own")
    refused("'foreign' (of org/other) and 'own' (of base) have different bases", foreign, own)
