from typing import Any

import pytest

from tests.support.models import dense, low_rank, tiny_llama
from tests.support.references import LIKE
from weightwatch.setup import Setup, Training, content
from weightwatch.vectors.arithmetic import negate

SETUP = Setup.model_validate(LIKE)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 20},
        {"every": 20},
        {"saves": 20},
        {"learning_rate": 1.4e-3},
        {"directions": {"evil": "3f2a", "x": "1"}},
    ],
)
def test_a_run_that_is_shorter_or_checked_less_often_is_alike(changes: dict[str, Any]) -> None:
    assert SETUP.differences(SETUP.model_copy(update=changes), "evil", controls=True) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 41}, "41 steps, not 40"),
        ({"steps": None}, "None steps, not 40"),
        ({"every": 5}, "a check every 5 steps, not 10"),
        ({"saves": 1}, "a check every 1 steps, not 10"),
        ({"saves": 15}, "a check every 5 steps, not 10"),
        ({"learning_rate": 2e-3}, "learning rate 0.002, not 0.001"),
        ({"learning_rate": None}, "learning rate None, not 0.001"),
        ({"alpha": 32.0}, "alpha 32, not None"),
        ({"modules": ["q_proj", "v_proj"]}, "adapters on q_proj and v_proj, not None"),
        ({"guard": "subspace"}, "guard subspace, not None"),
        ({"controls": {}}, "other controls"),
        ({"directions": {}}, "another direction evil"),
    ],
)
def test_what_makes_a_run_another_kind_is_told(changes: dict[str, Any], told: str) -> None:
    assert SETUP.differences(SETUP.model_copy(update=changes), "evil", controls=True) == [told]


def test_the_content_of_a_direction_tells_it_from_another_of_the_same_name() -> None:
    model = tiny_llama()
    evil, other = dense(model, 1), dense(model, 2)
    assert content(evil) == content(dense(model, 1))
    assert content(evil) != content(other)
    assert len(content(low_rank(model, 1))) == 12
    for one in (evil, low_rank(model, 1)):
        assert content(negate(one, name="evil")) != content(one)


def test_a_setup_has_behaviours_and_controls_apart() -> None:
    evil, style = dense(tiny_llama(), 1), dense(tiny_llama(), 2, name="style", kind="control")
    setup = Setup.of(Training(rank=4), 10, [evil, style])
    assert (setup.directions, setup.controls) == ({"evil": content(evil)}, {"style": content(style)})
    assert setup.trained(Training(method="full")).rank is None
