"""A copy of θ₀ on disk, written and read by any number of processes."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor, Piece, of_range, whole, whole_tensor
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.update.snapshot import Snapshot, remove, write
from weightwatch.vectors import WeightWatchError

SHAPE = (5, 3)
VALUES = torch.arange(15.0).view(SHAPE)


def shard(rank: int, count: int) -> LocalTensor:
    """Return the range of the flattened tensor that one of several processes has, as under FSDP1 or ZeRO."""
    start, stop = 15 * rank // count, 15 * (rank + 1) // count
    return LocalTensor(SHAPE, VALUES.dtype, True, True, of_range(SHAPE, VALUES.flatten()[start:stop], start))


def read(folder: Path, *box: slice) -> Tensor:
    return Snapshot(folder).read("w", box or whole(SHAPE))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shards_of_any_number_of_processes_read_back_as_the_whole(tmp_path: Path, count: int) -> None:
    for rank in range(count):
        write(tmp_path, {"w": shard(rank, count), "scale": whole_tensor(torch.tensor(2.0), True)}, Ranks(rank, count))
    found = Snapshot(tmp_path)
    assert sorted(found) == ["scale", "w"]
    assert found.shape("w") == SHAPE
    assert torch.equal(read(tmp_path), VALUES)
    assert torch.equal(read(tmp_path, slice(1, 4), slice(1, 3)), VALUES[1:4, 1:3])
    assert found.read("scale", ()).item() == 2.0


def test_a_copy_has_the_precision_of_the_parameter_not_of_its_masters(tmp_path: Path) -> None:
    masters = LocalTensor(SHAPE, torch.bfloat16, True, False, (Piece(whole(SHAPE), VALUES * 1.0001),))
    write(tmp_path, {"w": masters}, ALONE)
    assert read(tmp_path).dtype == torch.bfloat16
    assert torch.equal(read(tmp_path), VALUES.bfloat16())


def test_the_shard_of_a_machine_that_is_missing_is_named(tmp_path: Path) -> None:
    for rank in range(2):
        write(tmp_path, {"w": shard(rank, 2)}, Ranks(rank, 2))
    (tmp_path / "reference-00001-of-00002.safetensors").unlink()
    assert torch.equal(read(tmp_path, slice(0, 2), slice(0, 3)), VALUES[:2])
    with pytest.raises(WeightWatchError, match=r"A shard of θ₀ of w is missing.*Copy the reference-\*\.safetensors"):
        read(tmp_path)


def test_a_copy_that_is_gone_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"copy of θ₀ that this run wrote to .* is gone"):
        Snapshot(tmp_path)
    (tmp_path / "reference-00000-of-00001.safetensors").write_bytes(b"no tensors")
    with pytest.raises(WeightWatchError, match=r"reference-00000-of-00001\.safetensors can't be read"):
        Snapshot(tmp_path)
    remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=119))  # the tensor has 60 bytes
    with pytest.raises(WeightWatchError, match=r"has no room for a copy.*Pass reference="):
        write(tmp_path, {"w": shard(0, 1)}, ALONE)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_takes_no_part_from_a_run_on_other_processes(tmp_path: Path) -> None:
    """Where machines share no disk, the main process can't clear those of the others."""
    for value, ranks in ((0.0, [Ranks(2, 4), Ranks(3, 4)]), (1.0, [Ranks(rank, 8) for rank in (4, 5, 6, 7)])):
        values = torch.full((8, 2), value)
        local = LocalTensor((8, 2), values.dtype, True, False, (Piece(whole((8, 2)), values),))
        for one in ranks:
            write(tmp_path, {"weight": local}, one)
    assert bool((Snapshot(tmp_path).read("weight", (slice(4, 8), slice(0, 2))) == 1.0).all())


def copy_of(folder: Path, places: object, shape: tuple[int, ...] = (2, 3), name: str = "00000-of-00001") -> Path:
    """Write a file of a snapshot whose metadata are ``places``."""
    text = places if isinstance(places, str) else json.dumps(places)
    save_file({"a::0": torch.ones(shape)}, folder / f"reference-{name}.safetensors", {"places": text})
    return folder


PLACE = {"name": "a", "shape": [2, 3], "box": [[0, 2], [0, 3]]}


@pytest.mark.parametrize(
    "places",
    [
        "{",
        "[]",
        {"a::0": {}},
        {"a::1": PLACE},
        {"a::0": {**PLACE, "box": [[0, 2], [0, 4]]}},
        {"a::0": {**PLACE, "box": [[0, 2]]}},
        {"a::0": {**PLACE, "box": [[-2, 0], [0, 3]]}},
        {"a::0": {**PLACE, "shape": [1, 3]}},
        {"a::0": {**PLACE, "name": 3}},
    ],
)
def test_a_copy_whose_places_do_not_fit_is_an_error_that_names_the_file(tmp_path: Path, places: object) -> None:
    with pytest.raises(WeightWatchError, match=r"reference-00000-of-00001\.safetensors can't be read"):
        Snapshot(copy_of(tmp_path, places))


def test_copies_of_two_runs_are_not_joined(tmp_path: Path) -> None:
    copy_of(tmp_path, {"a::0": {**PLACE, "box": [[0, 1], [0, 3]]}}, (1, 3), "00000-of-00002")
    copy_of(tmp_path, {"a::0": PLACE})
    with pytest.raises(WeightWatchError, match="copies of θ₀ from runs on 1 and 2 processes"):
        Snapshot(tmp_path)


def test_a_copy_that_is_cut_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    opened = Snapshot(copy_of(tmp_path, {"a::0": PLACE}))
    assert opened.read("a", (slice(0, 1), slice(0, 3))).tolist() == [[1.0, 1.0, 1.0]]
    (tmp_path / "reference-00000-of-00001.safetensors").open("wb").close()
    with pytest.raises(WeightWatchError, match="was written to while it was in use"):
        opened.read("a", (slice(0, 2), slice(0, 3)))
