"""Tensors on disk, read block by block by several threads."""

from pathlib import Path

import pytest
import torch

from weightwatch.measure import streaming
from weightwatch.measure.streaming import stream
from weightwatch.update.change import Streamed
from weightwatch.vectors import Direction, LowRank

SHAPES = {"a.weight": (12, 7), "b.weight": (5,), "c.weight": (3, 2, 4)}


def streamed(seed: int = 0) -> tuple[dict[str, Streamed], dict[str, torch.Tensor]]:
    """Return changes that are read by parts, and the whole changes in fp64."""
    generator = torch.Generator().manual_seed(seed)
    changes, whole = {}, {}
    for name, shape in SHAPES.items():
        before, now = torch.randn(2, *shape, generator=generator)
        changes[name] = Streamed(shape, now.__getitem__, before.__getitem__)
        whole[name] = now.double() - before.double()
    return changes, whole


@pytest.fixture(params=[1 << 21, 8], ids=["one block", "many blocks"])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_BLOCK", request.param)


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("on_disk", [False, True])
def test_sums_are_those_of_fp64_in_the_order_of_the_changes(tmp_path: Path, on_disk: bool) -> None:
    changes, whole = streamed()
    ws = {name: torch.randn(shape) for name, shape in SHAPES.items() if name != "b.weight"}
    low = {"a.weight": LowRank(torch.randn(12, 2), torch.randn(2, 7))}
    directions = [Direction.from_tensors(ws, name="dense"), Direction.from_tensors(low, name="low")]
    if on_disk:
        directions[0] = Direction.load(directions[0].save(tmp_path / "dense"))
    found = list(stream(changes, directions))
    assert [name for name, _, _ in found] == list(SHAPES)
    for name, own, inner in found:
        assert float(own) == pytest.approx(float(whole[name].square().sum()), rel=1e-6)
        want = {}
        if name in ws:
            want[0] = float((whole[name] * ws[name].double()).sum())
        if name in low:
            want[1] = float((whole[name] * low[name].dense().double()).sum())
        assert {k: float(value) for k, value in inner.items()} == pytest.approx(want, rel=1e-5)


def test_the_same_files_give_the_same_sums_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_BLOCK", 8)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append([float(own) for _, own, _ in stream(streamed()[0], [])])
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_fault_of_a_reader_is_raised_and_leaves_the_threads_as_they_were() -> None:
    changes, _ = streamed()
    before = torch.get_num_threads()

    def broken(box: object) -> torch.Tensor:
        raise OSError("gone")

    changes["b.weight"] = Streamed((5,), broken, broken)
    with pytest.raises(OSError, match="gone"):
        list(stream(changes, []))
    assert torch.get_num_threads() == before
