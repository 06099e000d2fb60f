"""Settings by pattern, against PEFT's own matching."""

import time

import pytest
from peft.utils.other import get_pattern_key

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.patterns import Patterns

MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.11.mlp.up_proj", "lm_head", "my_lm_head", "a.lm_head"]


@pytest.mark.parametrize(
    "keys",
    [
        ["q_proj"],
        ["layers.0.self_attn.q_proj", "q_proj"],
        [r"layers\.\d\..*", r"layers\.\d+\.mlp\.(up|down)_proj", "proj"],
        ["^lm_head", r"^model\.layers\.0\.self_attn\.q_proj"],
        [".*proj", "lm_head"],
    ],
)
def test_the_first_pattern_that_peft_takes_counts(keys: list[str]) -> None:
    values = {key: i for i, key in enumerate(keys)}
    patterns = Patterns(values, -1, "rank_pattern")
    for module in MODULES:
        assert patterns.of(module) == values.get(get_pattern_key(keys, module), -1)


def test_a_search_that_would_take_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightwatch.vectors.weights.patterns._SECONDS", 0.2)
    began = time.thread_time()
    with pytest.raises(WeightWatchError, match=r"The alpha_pattern takes too long to match: .* Name the modules"):
        Patterns({r"(a|b|\w|.)+(\1)+[A-Z]": 3}, 1, "alpha_pattern").of("model.layers.0.self_attn.q_proj")
    assert time.thread_time() - began < 5


def test_what_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(WeightWatchError, match="The rank_pattern has a pattern that is no regular expression"):
        Patterns({"(((": 3}, 1, "rank_pattern")
