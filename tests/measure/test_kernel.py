"""The fused pass against sums in fp64, compiled and in blocks, and what happens where nothing can be compiled."""

import logging
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from weightwatch.measure import kernel as fused
from weightwatch.measure.kernel import compiled_calls, failure, pass_over

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LONG = 1 << 16  # what is shorter is never worth compiled code

# One compiled loop each: this decides how long these tests take.
COMPILED = [
    (F32, F32, (F32,)),
    (F32, F32, (BF16,)),
    (F32, BF16, (BF16, F32, F16)),
    (BF16, F32, (BF16,)),
    (BF16, BF16, (F32, BF16)),
    (F16, F32, (BF16,)),
]


def exact(now: Tensor, before: Tensor, directions: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Return the sums in fp64; the only rounding is that of θ₀ to the model's precision."""
    change = now.double() - before.to(dtype or now.dtype).double()
    return torch.stack([(change * w.double()).sum() for w in (change, *directions)])


def drawn(count: int, now: torch.dtype, before: torch.dtype, directions: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    """Draw a tensor, a start near it, and directions that lie along the change."""
    start = torch.randn(count)
    change = 0.1 * torch.randn(count)
    lines = [(change + 0.2 * torch.randn(count)).to(dtype) for dtype in directions]
    return (start + change).to(now), start.to(before), *lines


def check(found: Tensor, now: Tensor, before: Tensor, directions: Sequence[Tensor], bound: float = 1e-7) -> None:
    """Compare sums, each as a share of the largest that it could be: ‖τ‖² and ‖τ‖‖w‖."""
    expected = exact(now, before, directions)
    lengths = torch.stack([expected[0].sqrt(), *(w.double().norm() for w in directions)]) * expected[0].sqrt()
    assert found.shape == (1 + len(directions),)
    assert found.dtype == torch.float64
    assert ((found - expected).abs() <= bound * lengths).all(), (found / expected - 1).tolist()


def summed(now: Tensor, before: Tensor, directions: Sequence[Tensor], compile: bool = True) -> Tensor:
    """Return the sums of weights whose precision in the model is that in which they are passed."""
    return pass_over(now, before, directions, now.dtype, compile)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile at the first pass instead of after many."""
    monkeypatch.setattr(fused, "BREAK_EVEN", 0)


@pytest.fixture
def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nothing was measured yet."""
    monkeypatch.setattr(fused, "_state", fused._State())


@pytest.mark.parametrize("now", [F32, BF16, F16])
@pytest.mark.parametrize("before", [F32, BF16, F16])
@pytest.mark.parametrize("direction", [F32, BF16, F16])
@pytest.mark.parametrize("count", [1, 7, 64, 10_007, 300_007])
def test_blocks_give_the_sums_for_every_precision_and_length(now, before, direction, count) -> None:
    tensors = drawn(count, now, before, [direction])
    check(summed(tensors[0], tensors[1], tensors[2:], False), tensors[0], tensors[1], tensors[2:])


@pytest.mark.parametrize(("now", "before", "directions"), COMPILED)
def test_compiled_loops_give_the_sums_for_every_length(now, before, directions) -> None:
    for count in (LONG, LONG + 1, 100_003, 3 * LONG - 1):
        tensors = drawn(count, now, before, directions)
        calls = compiled_calls()
        found = summed(tensors[0], tensors[1], tensors[2:])
        assert compiled_calls() == calls + 1, failure()
        check(found, tensors[0], tensors[1], tensors[2:])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("directions", [0, 1, 4, 17])
def test_any_number_of_directions(compiled, directions) -> None:
    tensors = drawn(LONG + 3, BF16, BF16, [BF16] * directions)
    calls = compiled_calls()
    check(summed(tensors[0], tensors[1], tensors[2:], compiled), tensors[0], tensors[1], tensors[2:])
    assert compiled_calls() - calls == (math.ceil(max(1, directions) / 8) if compiled else 0), failure()


@pytest.mark.parametrize("compiled", [False, True])
def test_an_empty_tensor_has_not_changed(compiled) -> None:
    empty = torch.empty(0)
    assert summed(empty, empty, [empty, empty], compiled).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("compiled", [False, True])
def test_tensors_may_start_anywhere_in_memory(compiled) -> None:
    now, before, w = drawn(LONG + 200, F32, F32, [BF16])
    for offset in (1, 3, 5):
        views = [tensor[offset : offset + LONG + 70 - offset] for tensor in (now, before, w)]
        check(summed(views[0], views[1], views[2:], compiled), views[0], views[1], views[2:])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_start_is_read_from_a_mapped_file(compiled, tmp_path: Path) -> None:
    now, before, w = drawn(LONG + 70, F32, F32, [BF16])
    save_file({"a": torch.zeros(3), "before": before, "c": torch.zeros(1, dtype=BF16), "w": w}, tmp_path / "f")
    with safe_open(tmp_path / "f", framework="pt") as file:
        found = summed(now, file.get_tensor("before"), [file.get_tensor("w")], compiled)
    check(found, now, before, [w])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_start_is_rounded_to_the_precision_the_model_holds(compiled) -> None:
    before = torch.randn(LONG)
    assert summed(before.bfloat16(), before, [], compiled).tolist() == [0.0]
    upcast = before.bfloat16().float()  # a bf16 model whose weights were handed over in fp32
    assert pass_over(upcast, before, [], BF16, compiled).tolist() == [0.0]
    assert summed(upcast, before, [], compiled).item() == pytest.approx(exact(upcast, before, []).item())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("precision", "direction"), [(F32, F32), (F32, BF16), (BF16, BF16)])
def test_alike_values_do_not_drift(compiled, precision, direction) -> None:
    for value, along in ((0.7137, 0.611), (1 / 3, 0.1), (0.9999, 1.7)):
        count = 1 << 24 if value == 1 / 3 else 1 << 18  # every sum of 64 is the same
        now, before = torch.full((count,), value, dtype=precision), torch.full((count,), 0.01, dtype=precision)
        w = torch.full((count,), along, dtype=direction)
        square, inner = summed(now, before, [w], compiled).tolist()
        cosine = inner / math.sqrt(square) / (math.sqrt(count) * w[0].item())
        assert abs(cosine - 1) < 1e-7


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_comes_out_where_it_went_in(compiled, value) -> None:
    now, before, a, b = drawn(LONG, BF16, BF16, [BF16, BF16])
    a[5] = value
    assert summed(now, before, [a, b], compiled).isfinite().tolist() == [True, False, True]
    now[5] = value
    assert summed(now, before, [a, b], compiled).isfinite().tolist() == [False, False, False]


def test_one_loop_serves_trainings_of_every_kind() -> None:
    now, before, w = drawn(LONG, F32, F32, [BF16])
    expected = summed(now, before, [w])
    with torch._dynamo.config.patch(error_on_recompile=True):
        with torch.autocast("cpu", dtype=BF16):
            assert summed(now, before, [w]).equal(expected)
        with torch.no_grad():
            assert summed(now, before, [w]).equal(expected)
        parameter = torch.nn.Parameter(now)
        assert summed(parameter, before, [w]).equal(expected)
        for count in (LONG + 64, 5 * LONG):
            now, before, w = drawn(count, F32, F32, [BF16])
            check(summed(now, before, [w]), now, before, [w])
    assert failure() is None


@pytest.mark.usefixtures("unused")
def test_what_is_done_often_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BREAK_EVEN", 2.5 * 2 * LONG)
    now, before, w = drawn(LONG, F32, F32, [BF16])
    for calls in (0, 0, 1, 2):
        check(summed(now, before, [w]), now, before, [w])
        assert compiled_calls() == calls


@pytest.mark.usefixtures("unused")
def test_compiling_leaves_the_random_numbers_of_a_training_alone() -> None:
    now, before, w = drawn(LONG, F32, F32, [BF16])
    state = torch.get_rng_state()
    summed(now, before, [w])
    assert compiled_calls() == 1
    assert torch.get_rng_state().equal(state)


@pytest.mark.usefixtures("unused")
def test_a_training_that_forbids_compiling_is_measured_in_blocks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "weightwatch")
    now, before, w = drawn(LONG, F32, F32, [BF16])
    torch.compiler.set_stance("force_eager")
    try:
        for _ in range(2):
            check(summed(now, before, [w]), now, before, [w])
    finally:
        torch.compiler.set_stance("default")
    assert compiled_calls() == 0
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "switched off" in caplog.text


@pytest.mark.usefixtures("unused")
def test_wrong_code_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.compile  # as it comes, it optimises the rounding of θ₀ away
    monkeypatch.setattr(torch, "compile", lambda function, fullgraph, options: real(function, fullgraph=fullgraph))
    now, before, w = drawn(LONG, BF16, F32, [BF16])
    check(summed(now, before, [w]), now, before, [w])
    assert compiled_calls() == 0
    assert "differ" in (failure() or "")


MEASURE = """
import logging
import torch
logging.basicConfig(level=logging.INFO)
{setting}
from weightwatch.measure import kernel
from weightwatch.measure.kernel import compiled_calls, failure, pass_over
kernel.BREAK_EVEN = 0
now = torch.linspace(1, 2, 1 << 17)
for _ in range(2):
    square, *inner = pass_over(now, now / 2, [now.to(torch.bfloat16)] * {directions}, now.dtype).tolist()
    exact = (now.double() / 2).square().sum().item()
    assert abs(square / exact - 1) < 1e-6, square
    assert all(abs(each / exact / 2 - 1) < 1e-4 for each in inner), inner
print(compiled_calls(), failure())
"""


def measured_in_process(setting: str = "", directions: int = 1, **environment: str) -> tuple[str, str]:
    """Measure twice in a process of its own, and return what it printed and logged."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.format(setting=setting, directions=directions)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("environment", [{"CXX": "/nowhere/g++"}, {"TORCHDYNAMO_DISABLE": "1"}])
def test_without_a_compiler_blocks_do_it_and_say_so_once(tmp_path: Path, environment: dict[str, str]) -> None:
    nothing_cached = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    printed, logged = measured_in_process(**nothing_cached, **environment)
    assert printed.startswith("0 ")
    assert printed != "0 None"
    assert logged.count("INFO:weightwatch.measure.kernel:Full tensors are measured without torch.compile") == 1


def test_limits_that_a_training_sets_on_recompiling_do_not_reach_the_loops() -> None:
    # Seventeen directions need two loops; with a limit of one, code they shared could be compiled for one of them.
    setting = "import torch._dynamo.config as c; c.recompile_limit = 1; c.suppress_errors = True"
    assert measured_in_process(setting, 17)[0] == "6 None"


def test_tensors_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        pass_over(torch.zeros(3), torch.zeros(4), [], F32)
    with pytest.raises(ValueError, match="contiguous"):
        pass_over(torch.zeros(6)[::2], torch.zeros(3), [], F32)
