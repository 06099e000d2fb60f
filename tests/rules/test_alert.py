import json
from dataclasses import FrozenInstanceError, replace

import pytest
from pydantic import ValidationError

from weightwatch import Alert

ALERT = Alert(
    alert="evil-drift",
    state="firing",
    severity="critical",
    direction="evil",
    metric="reach_cosine",
    value=0.34567,
    threshold=0.1,
    where="layer 12",
    step=40,
    since=30,
    time="2026-01-01T00:00:00.000+00:00",
    top_layers=(12, 11),
    top_modules=("down_proj",),
    last_clean="checkpoint-20",
    labels={"team": "safety"},
    actions=("log", "stop"),
)


def test_its_description_says_what_where_since_when_and_where_to_go_back_to() -> None:
    assert ALERT.describe() == (
        "evil-drift (critical) at step 40: evil reach_cosine is 0.3457 in layer 12, past 0.1 since step 30. "
        "Over the model, most of it is in layers 12, 11, and in modules down_proj; "
        "last clean checkpoint: checkpoint-20."
    )


def test_without_a_clean_checkpoint_it_sends_back_to_the_base() -> None:
    assert replace(ALERT, last_clean=None).describe().endswith("no clean checkpoint: go back to the base.")


def test_a_resolved_one_says_so() -> None:
    resolved = replace(ALERT, state="resolved", step=60, value=0.02)
    assert resolved.describe() == "evil-drift resolved at step 60: evil reach_cosine is 0.02."


@pytest.mark.parametrize("state", ["firing", "resolved"])
def test_its_description_is_one_printable_line(state: str) -> None:
    hostile = replace(ALERT, state=state, alert="drift\x1b[2J", direction="evil\nall is well")  # type: ignore[arg-type]
    assert hostile.describe().isprintable()
    assert r"drift\x1b[2J" in hostile.describe()


def test_a_line_of_the_record_reads_back_equal() -> None:
    assert Alert.from_json(json.dumps(ALERT.to_json())) == ALERT


@pytest.mark.parametrize(
    "damage",
    [
        {"colour": "red"},
        {"top_layers": None},
        {"value": "0.3"},
        {"value": float("nan")},
        {"state": "on"},
        {"step": 1.5},
    ],
)
def test_a_line_that_is_no_alert_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Alert.from_json(json.dumps({**ALERT.to_json(), **damage}))


def test_one_of_a_guard_says_what_happened_and_reads_back_equal() -> None:
    alert = Alert.of_guard("evil", 5, "the guard failed: no room.")
    assert alert.describe() == "guard-failed (critical) at step 5: the guard failed: no room."
    assert (alert.state, alert.direction, alert.since, alert.actions) == ("firing", "evil", 5, ("log",))
    assert Alert.of_guard("evil", 5, "told by the error", told=False).actions == ()
    assert Alert.from_json(json.dumps(alert.to_json())) == alert
    assert "message" not in ALERT.to_json()


def test_it_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        ALERT.step = 41  # type: ignore[misc]
