"""``weightwatch compare`` as a user calls it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.commands import call, refused, told
from tests.support.models import low_rank, move, tiny_llama
from weightwatch import Direction
from weightwatch.cli.exit_status import BAD_INPUT
from weightwatch.organism import BASE
from weightwatch.vectors.steering.in_memory import steer


def test_the_json_has_a_row_for_each_in_the_order_given() -> None:
    found = told("compare", "evil", "style", "evil-witness")
    assert found["names"] == ["evil", "style", "evil-witness"]
    assert [row[i] for i, row in enumerate(found["cosines"])] == [1.0, 1.0, 1.0]
    assert found["cosines"][0][2] == pytest.approx(0.423, abs=1e-3)


def test_a_fine_tune_is_a_row_beside_directions(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    evil = low_rank(model, 1).save(tmp_path / "evil")
    move(model, 3)
    model.save_pretrained(tmp_path / "tuned")
    assert told("compare", evil, tmp_path / "tuned", "--base", tmp_path / "base")["names"] == ["evil", "tuned"]
    refused("Pass --base", "compare", evil, tmp_path / "tuned")


def test_the_packaged_base_has_a_name(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    steer(model, Direction.load("evil"), 0.5)
    model.save_pretrained(tmp_path / "tuned")
    (one, cosine), _ = told("compare", "evil", tmp_path / "tuned", "--base", "organism")["cosines"]
    assert (one, cosine) == (1.0, pytest.approx(1.0, abs=1e-3))


def test_the_columns_of_the_table_are_numbered_like_its_rows() -> None:
    lines = (line.split() for line in call("compare", "evil", "style").output.splitlines())
    head, *rows = (words for words in lines if words and words[-1][-1].isdigit())
    assert head == ["name", "norm", "1", "2"]
    assert [row[:2] for row in rows] == [["1", "evil"], ["2", "style"]]
    assert [rows[0][3], rows[1][4]] == ["+1.000", "+1.000"]


def test_a_heat_map_is_drawn(tmp_path: Path) -> None:
    assert call("compare", "evil", "style", "--picture", tmp_path / "cosines.png").exit_code == 0
    assert (tmp_path / "cosines.png").read_bytes().startswith(b"\x89PNG")
    refused("can't be written", "compare", "evil", "--picture", tmp_path / "none" / "cosines.png")


@pytest.mark.parametrize("arguments", [[], ["evil", "--unknown"]])
def test_bad_arguments_exit_with_2(arguments: list[str]) -> None:
    assert call("compare", *arguments).exit_code == BAD_INPUT
