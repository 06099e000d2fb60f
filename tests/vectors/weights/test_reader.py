import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.reader import Unmapped, boxes, tensors, whole_size

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {str(kind): (4 * torch.randn(3, 4, 5)).to(kind) for kind in KINDS}
    save_file(
        {**tensors, "scalar": torch.tensor(2.5), "empty": torch.ones(0, 3)}, tmp_path / "a.safetensors", {"a": "b"}
    )
    return tmp_path / "a.safetensors"


def test_every_tensor_and_every_box_reads_as_safetensors_reads_it(file: Path) -> None:
    from safetensors import safe_open

    ours = Unmapped(file)
    with safe_open(file, "pt") as theirs:
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.metadata() == theirs.metadata()
        for name in ours.keys():  # noqa: SIM118
            assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name))
            part = ours.get_slice(name)
            assert part.get_shape() == theirs.get_slice(name).get_shape()
            assert part.get_dtype() == theirs.get_slice(name).get_dtype()
            if len(part.get_shape()) == 3:
                for box in ((slice(1, 3), slice(0, 4), slice(0, 5)), (slice(0, 3), slice(1, 2), slice(2, 4))):
                    assert torch.equal(part[box], theirs.get_tensor(name)[box])
    assert ours.get_slice("scalar")[()] == 2.5


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (5, 4), (3, 4, 5), (2, 100)])
@pytest.mark.parametrize("most", [1, 3, 20, 1000])
def test_boxes_cover_a_tensor_once_in_runs(shape: tuple[int, ...], most: int) -> None:
    numbers = torch.arange(torch.Size(shape).numel()).reshape(shape)
    parts = [numbers[box].reshape(-1) for box in boxes(shape, most)]
    assert torch.equal(torch.cat(parts), numbers.reshape(-1))
    assert all(part.numel() <= most for part in parts)


def test_reads_are_counted(file: Path) -> None:
    counted: list[int] = []
    Unmapped(file, counted.append).get_tensor(str(torch.float32))
    assert counted == [3 * 4 * 5 * 4]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, (5).to_bytes(8, "little") + b"[1,2]"])
def test_what_is_no_safetensors_file_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match="header"):
        Unmapped(tmp_path / "bad")


def test_a_file_that_is_cut_short_knows_how_long_it_should_be(file: Path) -> None:
    whole = file.stat().st_size
    os.truncate(file, whole - 1)
    assert whole_size(file) == whole
    with pytest.raises(ValueError, match=f"it has {whole - 1} bytes where its header states {whole}"):
        Unmapped(file)
    assert json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}")


def cut(file: Path) -> None:
    file.open("wb").close()  # what ``cp`` does first


def rewrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-4, os.SEEK_END)
        opened.write(b"\1\2\3\4")


def extend(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


@pytest.mark.parametrize("harm", [cut, rewrite, extend])
def test_a_file_that_is_written_to_while_it_is_open_is_an_error_that_names_it(
    file: Path, harm: Callable[[Path], None]
) -> None:
    opened = Unmapped(file)
    opened.get_tensor("scalar")
    os.utime(file, ns=(0, 0))  # a clock that is too coarse must not hide the change
    opened = Unmapped(file)
    harm(file)
    for read in (
        lambda: opened.get_tensor("scalar"),
        lambda: opened.get_slice(str(torch.float64))[:, 1:2, :],
        lambda: list(opened.raw("scalar")),
    ):
        with pytest.raises(WeightWatchError, match=r"a\.safetensors was written to while it was in use"):
            read()


def test_a_file_that_is_replaced_is_read_to_its_end(file: Path, tmp_path: Path) -> None:
    opened = Unmapped(file)
    save_file({"scalar": torch.tensor(7.0)}, tmp_path / "new")
    (tmp_path / "new").replace(file)
    assert opened.get_tensor("scalar") == 2.5
    assert tensors(file) == {"scalar": torch.tensor(7.0)}


def test_a_file_with_bytes_after_its_tensors_is_refused(file: Path) -> None:
    extend(file)
    with pytest.raises(ValueError, match="where its header states"):
        Unmapped(file)


def test_what_torch_has_set_does_not_reach_what_is_read(file: Path) -> None:
    plain = tensors(file)
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        with torch.inference_mode():
            read = tensors(file)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert {(n, t.dtype, t.device) for n, t in read.items()} == {(n, t.dtype, t.device) for n, t in plain.items()}
    assert all(torch.equal(read[name], plain[name]) for name in plain)
