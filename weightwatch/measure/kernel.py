"""One pass over a fully trained tensor, its start and K dense directions: ‖τ‖² and every ⟨τ,w⟩, each read once.

There are two implementations: blocks of single operations in fp64 that stay in the cache, and one loop compiled by
``torch.compile``, which is bound by memory bandwidth and three to six times faster. In the loop, τ, its products and
sums of 64 products are fp32, and larger sums are fp64. At most four of the 64 are added one after the other, the rest
in separate lanes of a vector, so that sums of equal values do not drift. Compiling takes seconds. Each combination of
precisions and K starts in blocks, and is compiled once the expected saving exceeds the compile time.
"""

import logging
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightwatch.vectors.precision import exact, wide
from weightwatch.vectors.weights.difference import moved

_log = logging.getLogger(__name__)

BREAK_EVEN = 10**10
"""Products after which a combination of precisions and K is compiled. For so many, blocks take about 5 s longer than a
compiled loop, which is the compile time."""

_ROW = 64  # elements whose products are summed in fp32
_CALL = 1 << 23  # elements per compiled call: the sums of its rows take 0.5 MB per direction
TINY = 1 << 13
"""Tensors with at most so many elements are measured without blocks, and several of them together."""
_SMALL = 1 << 16  # for shorter tensors, one block is faster than the entry into compiled code
_TOGETHER = 8  # directions per pass: with more inputs, a loop runs out of registers
_BLOCK = 1 << 15  # elements per block and thread: 0.5 MB of scratch, which stays in the cache
_LOW = (torch.bfloat16, torch.float16)


@dataclass
class _Kernel:
    """The state of one combination of precisions and K."""

    work: int = 0
    """Products formed so far."""
    loop: Callable[..., Tensor] | None = None
    """The compiled loop; None before it is compiled."""
    calls: int = 0
    """Number of calls of the loop."""
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Taken by the thread that compiles. The others go on in blocks meanwhile."""

    def has_loop_or_turn(self) -> bool:
        """Whether there is a loop, or it is this thread's turn to compile it."""
        return self.loop is not None or self.turn.acquire(blocking=False)


@dataclass
class _State:
    kernels: dict[tuple[object, ...], _Kernel] = field(default_factory=dict)
    failure: str | None = None
    made: int = 0


_state = _State()


def pass_over(
    now: Tensor,
    before: Tensor,
    directions: Sequence[Tensor],
    dtype: torch.dtype,
    compile: bool = True,
    ahead: int = 0,
) -> Tensor:
    """Return ‖τ‖² and ⟨τ,w_k⟩ for ``τ = now − before``, reading each tensor once per eight directions.

    NaN and infinite values propagate to the sums; no error is raised.

    Args:
        now: Shape (n,), of any floating precision. All tensors are contiguous and on one device.
        before: Shape (n,): θ₀ of the tensor.
        directions: K tensors of shape (n,).
        dtype: Precision of the weight in the model; ``before`` is rounded to it first.
        compile: Whether to compile a loop once there are ``BREAK_EVEN`` products (elements times 1 + K): those of all
            passes so far, and those ahead.
        ahead: Products that will follow this pass, as far as is known.

    Returns:
        Shape (1 + K,), fp64, on the device of ``now``. A cosine formed of the sums errs by less than 1e-7.

    Raises:
        ValueError: A tensor is not flat, not contiguous, of another length or on another device than ``now``.
    """
    for tensor in (now, before, *directions):
        if tensor.shape != (now.numel(),) or tensor.device != now.device or not tensor.is_contiguous():
            raise ValueError(
                f"A pass needs flat, contiguous tensors of one length on one device: {tuple(tensor.shape)} on "
                f"{tensor.device} beside {tuple(now.shape)} on {now.device}."
            )
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        with exact():  # compiled code is bound to these states
            return pass_over(now, before, directions, dtype, compile, ahead)
    now, before, directions = now.detach(), before.detach(), [w.detach() for w in directions]
    parts = [directions[k : k + _TOGETHER] for k in range(0, len(directions), _TOGETHER)]
    first, *others = [_pass(now, before, part, dtype, ahead if compile else None) for part in parts or [directions]]
    return torch.cat([first, *(part[1:] for part in others)]) if others else first


def pass_over_tiny(
    now: Sequence[Tensor], before: Sequence[Tensor], directions: Sequence[Sequence[Tensor]], dtype: torch.dtype
) -> Tensor:
    """Return the sums of several tensors of at most ``TINY`` elements in one pass.

    Args:
        now: Flat tensors on one device.
        before: θ₀ of each tensor.
        directions: K directions for each tensor.
        dtype: See ``pass_over``.

    Returns:
        Shape (1 + K, number of tensors), fp64.
    """
    lines = [torch.cat(list(parts)) for parts in zip(*directions, strict=True)]
    products = _products(torch.cat(list(now)), torch.cat(list(before)), lines, dtype)
    return torch.stack([part.sum(1) for part in products.split([len(part) for part in now], 1)], 1)


def compiled_calls() -> int:
    """Return the number of calls of compiled loops in this process."""
    return sum(kernel.calls for kernel in _state.kernels.values())


def failure() -> str | None:
    """Return why compilation failed in this process; None if it did not. After a failure, nothing is compiled."""
    return _state.failure


def _pass(now: Tensor, before: Tensor, directions: Sequence[Tensor], dtype: torch.dtype, ahead: int | None) -> Tensor:
    size = now.numel()
    if size <= TINY:
        return _products(now, before, directions, dtype).sum(1)
    threads = torch.get_num_threads()  # a loop is compiled for so many
    key = (now.device.type, threads, dtype, *(tensor.dtype for tensor in (now, before, *directions)))
    kernel = _state.kernels.setdefault(key, _Kernel())
    kernel.work += size * (1 + len(directions))
    sums: list[Tensor] = []
    done = 0
    worth = ahead is not None and kernel.work + ahead >= BREAK_EVEN
    if worth and size >= _SMALL and _state.failure is None and kernel.has_loop_or_turn():
        try:
            loop = kernel.loop = kernel.loop or _compiled(now.device, dtype, [now, before, *directions])
            whole = size - size % _ROW
            for first in range(0, whole, _CALL):
                last = min(whole, first + _CALL)
                sums.append(loop(*(t[first:last].view(-1, _ROW) for t in (now, before, *directions))))
                kernel.calls, done = kernel.calls + 1, last
        except Exception as error:  # compilation and its cache raise many kinds, none of which may stop a training
            _give_up(error)
    if done < size:
        sums.append(_blocks(now[done:], before[done:], [w[done:] for w in directions], dtype))
    return torch.stack(sums).sum(0) if len(sums) > 1 else sums[0]


def _products(now: Tensor, before: Tensor, directions: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the products to sum, shape (1 + K, n), of a tensor so small that the calls take most of the time."""
    change = moved(now, before, dtype)
    return torch.stack([change * change, *(change * w for w in directions)]).double()


def _blocks(now: Tensor, before: Tensor, directions: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Sum in blocks of single operations in fp64 that all use the same scratch memory.

    The difference is that of ``moved``, written out so that no operation allocates memory.
    """
    step = min(_BLOCK * (torch.get_num_threads() if now.device.type == "cpu" else 64), now.numel())
    device = wide(now[:0]).device
    change, other = torch.empty(2, step, dtype=torch.float64, device=device)
    exactly = before.dtype == dtype or (before.dtype in _LOW and dtype == torch.float32)  # rounding changes nothing
    sums: list[Tensor] = []
    for at, start, *lines in zip(*(tensor.split(step) for tensor in (now, before, *directions)), strict=True):
        size = len(at)
        old = start if exactly else start.to(dtype)
        move = change[:size].copy_(at).sub_(other[:size].copy_(old))
        sums.append(torch.dot(move, move))
        sums.extend(torch.dot(move, other[:size].copy_(line)) for line in lines)
    return torch.stack(sums).view(-1, 1 + len(directions)).sum(0)


def _compiled(device: torch.device, dtype: torch.dtype, like: Sequence[Tensor]) -> Callable[..., Tensor]:
    """Compile the loop of one combination of precisions and K, and compare it with the blocks.

    Raises:
        Exception: It can't be compiled, or its sums are wrong.
    """
    _state.made += 1
    options: dict[str, str | int | bool | Callable[..., Any]] = {
        "emulate_precision_casts": True,  # otherwise the rounding of θ₀ is optimised away
        "compile_threads": 1,  # no pool of processes for one source file
        "cpp.min_chunk_size": 16,  # use all threads, whatever the length at compile time
    }
    loop = torch.compile(_function(dtype, [t.dtype for t in like], _state.made), fullgraph=True, options=options)
    waves = torch.arange(2 * _SMALL, dtype=torch.float32, device=device)
    trial = [(waves * 0.37).sin(), (waves * 0.37).sin() + 0.001 * (waves * 0.11).sin()]
    trial += [(waves * (0.37 + 0.01 * k)).sin() for k in range(len(like) - 2)]
    trial = [x.to(tensor.dtype) for x, tensor in zip(trial, like, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about mixed precisions, and others of the compiler
        rows = [tensor.view(-1, _ROW) for tensor in trial]
        for tensor in rows:
            torch._dynamo.mark_dynamic(tensor, 0)  # one loop serves all lengths
        found = loop(*rows)
    expected = _blocks(trial[0], trial[1], trial[2:], dtype)
    if not torch.allclose(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max())):
        raise ArithmeticError(f"compiled sums {found.tolist()} differ from {expected.tolist()}")
    return loop


def _function(dtype: torch.dtype, dtypes: Sequence[torch.dtype], number: int) -> Callable[..., Tensor]:
    """Return the function to compile, with a code object of its own.

    The compiler limits the recompilations of a code object, and closures share one.
    """
    lows = [place for place, each in enumerate(dtypes) if each in _LOW]

    def loop(now: Tensor, before: Tensor, *directions: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():  # off by a setting; uncompiled, this would fill the memory
            raise RuntimeError("torch.compile is switched off")
        change = moved(now, before, dtype)
        if lows:
            # A loop reads full vectors of 16-bit numbers only if all of its sums read such numbers; half vectors take
            # three times as long. Both branches are equal: this only makes each sum read a 16-bit number.
            low = (now, before, *directions)[lows[0]]
            change = torch.where(low == low, change, change)
        products = [change * change, *(change * w.float() for w in directions)]
        if not lows:  # vectors are half as long, so twice as many would be added one after the other
            products = [product.double() for product in products]
        return torch.stack([product.sum(1).double().sum() for product in products])

    code = loop.__code__.replace(co_name=f"pass_{number}")
    return types.FunctionType(code, loop.__globals__, code.co_name, None, loop.__closure__)


def _give_up(error: Exception) -> None:
    _state.failure = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    _log.info("Full tensors are measured without torch.compile, several times slower: %s", _state.failure)
