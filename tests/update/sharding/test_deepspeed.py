"""Parts of reading DeepSpeed that need no processes: tests/distributed reads real engines."""

import pytest
import torch

from weightwatch.update.sharding.deepspeed import _require_masters_of, _unreadable
from weightwatch.vectors import WeightWatchError


def test_masters_that_round_to_the_weights_are_theirs() -> None:
    masters = torch.linspace(-1, 1, 1000)
    weights = torch.cat([masters.bfloat16(), torch.full((24,), 9.0).bfloat16()])  # what follows is another process's
    _require_masters_of("w", masters, weights)
    weights[0] = masters[0] = torch.nan  # a run that has diverged
    _require_masters_of("w", masters, weights)


def test_masters_of_another_parameter_are_refused() -> None:
    masters = torch.linspace(-1, 1, 1000)
    with pytest.raises(WeightWatchError, match=r"fp32 master weights of w differ.*round_robin_gradients to false"):
        _require_masters_of("w", masters, masters.flip(0).bfloat16())


def test_an_offloaded_parameter_is_named_with_the_way_out() -> None:
    message = str(_unreadable("w", "offloaded (engine.offload_states)"))
    assert message.startswith("w is offloaded (engine.offload_states) by DeepSpeed")
    assert message.endswith("Keep it on the device or in CPU memory.")
