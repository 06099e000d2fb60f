"""Sums, multiples, projections and inner products against the same in fp64 with everything multiplied out."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import oracle as slow
from tests.support.models import dense, lora, low_rank, move, tiny_gpt2, tiny_llama
from weightwatch.vectors import Direction, Fingerprint, LowRank, WeightWatchError
from weightwatch.vectors.arithmetic import (
    add,
    compressed,
    cosine,
    cosines,
    inner,
    mean,
    negate,
    orthogonalised,
    scale,
    small,
    subtract,
)
from weightwatch.vectors.weights.reader import Unmapped

Pair = Callable[[], tuple[Direction, Direction, Direction]]


def mixed(seed: int) -> Direction:
    """Factors on some tensors, dense ones on others."""
    thin = low_rank(tiny_llama(), seed).deltas
    full = dense(tiny_llama(), seed).deltas
    split = {name: thin[name] if name in thin and i % 2 else delta for i, (name, delta) in enumerate(full.items())}
    return Direction.from_tensors(split, name="mixed")


def turned(w: Direction) -> Direction:
    """The same direction with the factors of every tensor held the other way round."""
    changes = {n: LowRank(d.right.T, d.left.T, not d.transposed, d.limited) for n, d in w.deltas.items()}
    return Direction.from_tensors(changes, name=w.name)


TRIOS: dict[str, Pair] = {
    "factors": lambda: tuple(low_rank(tiny_llama(), seed, name=f"w{seed}") for seed in (1, 2, 3)),
    "factors of transposed weights": lambda: tuple(low_rank(tiny_gpt2(), seed, name=f"w{seed}") for seed in (1, 2, 3)),
    "factors in both orientations": lambda: (
        low_rank(tiny_gpt2(), 1),
        turned(low_rank(tiny_gpt2(), 2)),
        low_rank(tiny_gpt2(), 3),
    ),
    "dense": lambda: tuple(dense(tiny_llama(), seed, name=f"w{seed}") for seed in (1, 2, 3)),
    "dense and factors": lambda: (low_rank(tiny_llama(), 1), dense(tiny_llama(), 2), low_rank(tiny_llama(), 3)),
    "both in each": lambda: (mixed(1), mixed(2), low_rank(tiny_llama(), 3)),
    "other tensors in each": lambda: (
        low_rank(tiny_llama(), 1).without(["model.layers.0.mlp.up_proj.weight"]),
        low_rank(tiny_llama(), 2).without(["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]),
        dense(tiny_llama(), 3).without(["model.layers.0.mlp.up_proj.weight"]),
    ),
}


def combination(directions: list[Direction], weights: list[float]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for w, k in zip(directions, weights, strict=True):
        for name, change in slow.dense(w).items():
            total[name] = total.get(name, 0) + k * change
    return total


def product(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a.keys() & b.keys())


def assert_same(found: Direction, wanted: dict[str, Tensor]) -> None:
    ours = slow.dense(found)
    size = max(float(change.norm()) for change in wanted.values())
    for name, change in wanted.items():
        error = (ours.get(name, torch.zeros_like(change)) - change).norm()
        assert float(error) <= 1e-6 * max(float(change.norm()), 1e-3 * size), name
    assert ours.keys() <= wanted.keys()
    assert found.norm == pytest.approx(product(wanted, wanted) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("case", TRIOS)
def test_a_sum_is_that_of_the_multiplied_out_tensors(case: str) -> None:
    trio = list(TRIOS[case]())
    weights = [1.0, -0.7, 0.25]
    assert_same(add(*trio, weights=weights), combination(trio, weights))
    assert_same(mean(*trio), combination(trio, [1 / 3] * 3))
    assert_same(subtract(trio[0], trio[1]), combination(trio[:2], [1, -1]))
    assert_same(scale(trio[1], -2.5), combination(trio[1:2], [-2.5]))
    assert_same(negate(trio[1]), combination(trio[1:2], [-1]))


def test_operators_are_the_functions() -> None:
    a, b, _ = TRIOS["factors"]()
    for found, wanted in ((a + b, [1, 1]), (a - b, [1, -1]), (2 * a - b * 0.5, [2, -0.5]), (-a + b, [-1, 1])):
        assert_same(found, combination([a, b], wanted))


@pytest.mark.parametrize("case", TRIOS)
def test_inner_products_and_cosines_are_those_of_the_flattened_vectors(case: str) -> None:
    trio = TRIOS[case]()
    full = [slow.dense(w) for w in trio]
    norms = [product(w, w) ** 0.5 for w in full]
    matrix = cosines(trio)
    for i, (a, x) in enumerate(zip(trio, full, strict=True)):
        for j, (b, y) in enumerate(zip(trio, full, strict=True)):
            size = norms[i] * norms[j]
            assert inner(a, b) == pytest.approx(product(x, y), abs=1e-7 * size)
            assert cosine(a, b) == pytest.approx(product(x, y) / size, abs=1e-7)
            assert matrix[i, j].item() == pytest.approx(product(x, y) / size, abs=1e-7)


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("case", TRIOS)
def test_what_is_left_of_a_direction_is_orthogonal_to_its_controls(case: str, per_tensor: bool) -> None:
    w, *controls = TRIOS[case]()
    full, spans = slow.dense(w), [slow.dense(control) for control in controls]
    names = sorted({name for change in (full, *spans) for name in change})
    wanted: dict[str, Tensor] = {}
    for group in [[name] for name in names] if per_tensor else [names]:
        shapes = {name: next(c[name] for c in (full, *spans) if name in c) for name in group}
        flat = [
            torch.cat([c.get(n, torch.zeros_like(shapes[n])).double().flatten() for n in group]) for c in (full, *spans)
        ]
        span = torch.stack(flat[1:], dim=1)
        rest = flat[0] - span @ (torch.linalg.pinv(span) @ flat[0])
        sizes = [shapes[name].numel() for name in group]
        wanted.update({n: part.reshape(shapes[n].shape) for n, part in zip(group, rest.split(sizes), strict=True)})
    found = orthogonalised(w, *controls, per_tensor=per_tensor)
    assert_same(found, wanted)
    for control in controls:
        assert abs(cosine(found, control)) < 1e-7
        if per_tensor:
            ours, theirs = slow.dense(found), slow.dense(control)
            for name in ours.keys() & theirs.keys():
                assert abs(product({name: ours[name]}, {name: theirs[name]})) < 1e-6 * w.norm * control.norm


def test_controls_that_repeat_one_another_are_no_trouble() -> None:
    w, one, other = TRIOS["factors"]()
    found = orthogonalised(w, one, other, scale(one, 3), one + other)
    wanted = slow.dense(orthogonalised(w, one, other))
    assert_same(found, wanted)


def test_the_mean_over_one_build_is_that_build_with_its_rank() -> None:
    w = low_rank(tiny_gpt2(), 1, rank=3)
    found = mean(w, w, w)
    assert {delta.rank for delta in found.deltas.values()} == {3}
    assert_same(found, slow.dense(w))


def test_ranks_never_exceed_those_of_the_weights() -> None:
    builds = [low_rank(tiny_llama(), seed, rank=7) for seed in range(8)]
    found = mean(*builds)
    assert all(isinstance(delta, LowRank) and delta.rank <= min(delta.shape) for delta in found.deltas.values())
    assert_same(found, combination(builds, [1 / 8] * 8))


@pytest.mark.parametrize("size", [1e3, 1e-3])
def test_small_terms_beside_large_ones_are_kept(size: float) -> None:
    """LoRA's B is small where its A is large; that must not be taken for rounding."""
    a, b, _ = TRIOS["factors"]()
    lopsided = Direction.from_tensors(
        {n: LowRank(d.left * 1e-4 * size, d.right * 1e4, d.transposed, d.limited) for n, d in b.deltas.items()},
        name="b",
    )
    assert_same(add(a, lopsided, weights=[1e-6, 1.0]), combination([a, lopsided], [1e-6, 1.0]))


def test_compression_drops_only_what_is_nothing() -> None:
    w = low_rank(tiny_llama(), 1, rank=3)
    twice = Direction.from_tensors(
        {
            n: LowRank(torch.cat([d.left, d.left], 1), torch.cat([d.right, 2 * d.right]), d.transposed, d.limited)
            for n, d in w.deltas.items()
        },
        name="twice",
    )
    found = compressed(twice)
    assert {delta.rank for delta in found.deltas.values()} == {3}
    assert found.card.model_copy(update={"norms": {}}) == twice.card.model_copy(update={"norms": {}})
    assert_same(found, slow.dense(twice))
    nearly = compressed(add(w, low_rank(tiny_llama(), 2, rank=2), weights=[1, 1e-5]), tolerance=1e-3)
    assert {delta.rank for delta in nearly.deltas.values()} == {3}


def test_compression_to_a_rank_keeps_the_nearest_direction_and_its_cosine_with_the_whole_is_the_ratio_of_norms() -> (
    None
):
    w = low_rank(tiny_llama(), 1, rank=4)
    found = compressed(w, rank=2)
    assert {delta.rank for delta in found.deltas.values()} == {2}
    assert 0.5 < found.norm / w.norm < 0.99
    assert cosine(found, w) == pytest.approx(found.norm / w.norm, rel=1e-5)


def test_a_small_direction_is_in_bf16_says_what_it_kept_and_reads_as_saved(tmp_path: Path) -> None:
    w = low_rank(tiny_llama(), 1, rank=4)
    found = small(w, 2)
    kept = found.card.hyperparameters["compressed"]
    assert kept == {"rank": 2, "cosine": pytest.approx(cosine(found, w), abs=1e-4)}
    assert 0.5 < kept["cosine"] < 0.99
    loaded = Direction.load(found.save(tmp_path))
    assert {delta.left.dtype for delta in loaded.deltas.values()} == {torch.bfloat16}
    assert loaded.card.hyperparameters["compressed"] == kept
    assert cosine(loaded, found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("case", ["factors", "factors of transposed weights", "dense", "both in each"])
def test_a_result_is_stored_and_loaded_as_any_direction(case: str, tmp_path: Path) -> None:
    trio = TRIOS[case]()
    found = orthogonalised(trio[0], *trio[1:])
    loaded = Direction.load(found.save(tmp_path))
    assert_same(loaded, slow.dense(found))
    assert loaded.card.recipe == found.card.recipe


def test_directions_of_different_bases_are_refused_by_name() -> None:
    def of(seed: int, name: str) -> Direction:
        base = {n: p.detach() for n, p in tiny_llama(seed).named_parameters()}
        metadata = {"base": f"org/{name}", "fingerprint": Fingerprint.of(base, base.__getitem__)}
        return Direction.from_tensors(low_rank(tiny_llama(), 1).deltas, name=name, metadata=metadata)

    one, other = of(0, "one"), of(1, "other")
    message = r"'one' \(of org/one\) and 'other' \(of org/other\) have different bases: only \d+ of \d+ sampled"
    for act in (add, subtract, mean, orthogonalised, inner, cosine):
        with pytest.raises(WeightWatchError, match=message):
            act(one, other)
    with pytest.raises(WeightWatchError, match=message):
        cosines([one, other])
    assert cosine(one, of(0, "again")) == pytest.approx(1)


@pytest.mark.parametrize("make", [low_rank, dense])
def test_directions_of_different_shapes_are_refused_by_tensor(make: Callable[..., Direction]) -> None:
    pair = make(tiny_llama(), 1), make(tiny_llama(intermediate_size=48), 1)
    for act in (add, inner):
        with pytest.raises(WeightWatchError, match=r"differ in the shape of model\.layers\.0\.mlp\.\w+\.weight: .*48"):
            act(*pair)


def test_what_leaves_no_direction_is_an_error() -> None:
    w = low_rank(tiny_llama(), 1)
    with pytest.raises(WeightWatchError, match="evil-evil is zero: the operands cancel out"):
        subtract(w, w)
    with pytest.raises(WeightWatchError, match="times 0 is not a direction"):
        scale(w, 0)
    with pytest.raises(WeightWatchError, match="one finite number for each"):
        add(w, w, weights=[1])
    with pytest.raises(WeightWatchError, match="mean of no directions"):
        mean()
    with pytest.raises(WeightWatchError, match="No controls"):
        orthogonalised(w)
    for per_tensor in (False, True):
        with pytest.raises(WeightWatchError, match="lies in the span of the controls"):
            orthogonalised(scale(w, 0.3), w, dense(tiny_llama(), 2), per_tensor=per_tensor)


def fine_tune(folder: Path, seed: int, shard: str = "1GB") -> Path:
    model = tiny_llama()
    move(model, seed)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def test_a_task_vector_of_a_checkpoint_stays_on_disk(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base)
    folders = [fine_tune(tmp_path / str(seed), seed, "20KB" if seed == 1 else "1GB") for seed in (1, 2)]
    taus = [Direction.from_fine_tune(folder, base, name=folder.name) for folder in folders]
    start = load_file(base / "model.safetensors")
    wanted = []
    for seed in (1, 2):
        model = tiny_llama()
        move(model, seed)
        wanted.append({n: p.detach().double() - start[n].double() for n, p in model.named_parameters()})
    assert all(tau.on_disk for tau in taus)
    assert taus[0].card.fingerprint is not None
    for tau, change in zip(taus, wanted, strict=True):
        assert_same(tau, change)
    w = low_rank(tiny_llama(), 3)
    full = slow.dense(w)
    assert cosine(*taus) == pytest.approx(
        product(*wanted) / (product(wanted[0], wanted[0]) * product(wanted[1], wanted[1])) ** 0.5, abs=1e-7
    )
    assert inner(taus[0], w) == pytest.approx(product(wanted[0], full), rel=1e-5)
    assert_same(Direction.load(taus[1].save(tmp_path / "tau")), wanted[1])
    assert_same(taus[0] - taus[1], combination(taus, [1, -1]))
    by_contrast = Direction.from_contrast(folders[0], base, base=base, name="1")
    assert cosine(taus[0], by_contrast) == pytest.approx(1, abs=1e-9)


def test_a_task_vector_of_an_adapter_is_its_ba(tmp_path: Path) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = lora(base)
    move(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    merged, start = slow.merged(model), slow.merged(base)
    wanted = {name: merged[name] - start[name] for name in merged if (merged[name] != start[name]).any()}
    for tau in (
        Direction.from_fine_tune(tmp_path / "adapter", name="tau"),
        Direction.from_fine_tune(tmp_path / "adapter", tmp_path / "base", name="tau"),
        Direction.from_contrast(tmp_path / "adapter", tmp_path / "base", name="tau"),
    ):
        assert tau.card.format == "lora"
        assert (tau.card.ranks, tau.card.base) == ([4], str(tmp_path / "base"))
        assert tau.card.fingerprint is not None
        assert slow.dense(tau).keys() == wanted.keys()
        for name, change in slow.dense(tau).items():
            assert torch.allclose(change, wanted[name], atol=1e-6)


def test_a_fine_tune_without_its_base_or_with_another_one_is_refused(tmp_path: Path) -> None:
    folder = fine_tune(tmp_path / "tuned", 1)
    with pytest.raises(WeightWatchError, match="tau is a full checkpoint: pass the base"):
        Direction.from_fine_tune(folder, name="tau")
    tiny_llama(num_hidden_layers=1).save_pretrained(tmp_path / "short")
    with pytest.raises(WeightWatchError, match=r"Only one of .*tuned and .*short has model\.layers\.1"):
        Direction.from_fine_tune(folder, tmp_path / "short", name="tau")
    tiny_llama(intermediate_size=48).save_pretrained(tmp_path / "wide")
    with pytest.raises(WeightWatchError, match=r"differ in the shape of model\.layers\.0\.mlp"):
        Direction.from_fine_tune(folder, tmp_path / "wide", name="tau")


def test_a_head_that_one_side_saved_beside_the_embedding_is_no_part_of_a_task_vector(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    tau = Direction.from_fine_tune(fine_tune(tmp_path / "tuned", 1), tmp_path / "base", name="tau")
    assert "lm_head.weight" not in tau.deltas


def test_a_direction_left_on_disk_counts_as_the_one_in_memory(tmp_path: Path) -> None:
    w, other = dense(tiny_llama(), 1), low_rank(tiny_llama(), 2)
    w.save(tmp_path)
    kept = Direction.load(tmp_path, Unmapped)
    assert kept.on_disk
    assert inner(kept, other) == pytest.approx(inner(w, other), rel=1e-12)
    assert_same(kept + other, combination([w, other], [1, 1]))
