"""``weightwatch steer`` as a user calls it."""

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.support.commands import call, refused, told
from tests.support.models import low_rank, tiny_llama
from tests.vectors.steering.test_disk import assert_sum
from weightwatch.cli.exit_status import BAD_INPUT
from weightwatch.vectors import Direction


def test_one_direction_is_added_by_a_coefficient(base: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = told("steer", base, evil, "--coefficient", "-0.5", "--output", out)
    assert summary == {
        "out": str(out),
        "form": "checkpoint",
        "model": str(base),
        "directions": [{"name": str(evil), "coefficient": -0.5}],
        "tensors": len(Direction.load(evil).deltas),
    }
    assert_sum(out, base, (evil, -0.5))


def test_several_directions_have_a_coefficient_each(base: Path, evil: Path, style: Path, tmp_path: Path) -> None:
    result = call("steer", base, f"{evil}=-0.5", f"{style}=0.2", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"- 0.5·{evil} + 0.2·{style}" in result.output
    assert_sum(tmp_path / "out", base, (evil, -0.5), (style, 0.2))
    told("steer", base, evil, f"{style}=2", "--coefficient", "0.1", "-o", tmp_path / "mixed")
    assert_sum(tmp_path / "mixed", base, (evil, 0.1), (style, 2.0))


def test_a_name_with_an_equals_sign_is_a_name_if_it_is_there(base: Path, tmp_path: Path) -> None:
    odd = low_rank(tiny_llama(), 1).save(tmp_path / "lr=0.1")
    told("steer", base, odd, "-o", tmp_path / "out")
    assert_sum(tmp_path / "out", base, (odd, 1.0))


def test_another_precision(base: Path, evil: Path, tmp_path: Path) -> None:
    told("steer", base, evil, "--dtype", "bfloat16", "-o", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert_sum(tmp_path / "out", base, (evil, 1.0), tolerance=1e-2)
    assert call("steer", base, evil, "--dtype", "int8", "-o", tmp_path / "no").exit_code == BAD_INPUT


def test_only_what_is_added_is_written_as_an_adapter(base: Path, evil: Path, tmp_path: Path) -> None:
    summary = told("steer", base, evil, "--coefficient", "0.5", "--adapter", "--output", tmp_path / "out")
    assert summary["form"] == "adapter"
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_bad_input_is_an_error_and_nothing_is_written(base: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("'much' is not a number. Write the coefficient as", "steer", base, f"{evil}=much", "-o", out)
    refused("must be finite", "steer", base, f"{evil}=nan", "-o", out)
    refused("Unknown direction 'evli'", "steer", base, "evli", "-o", out)
    assert not out.exists()
    assert call("steer", base, "-o", out).exit_code == BAD_INPUT


def test_an_error_is_one_message_and_exits_with_2(base: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightwatch", "steer", str(base), "evli", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == BAD_INPUT
    assert "weightwatch: Unknown direction 'evli'" in done.stderr
    assert "Traceback" not in done.stderr
