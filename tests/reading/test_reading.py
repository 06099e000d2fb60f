import json
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from weightwatch.measure.sums import Sums
from weightwatch.reading.reading import Guarded, Reading, read
from weightwatch.vectors import Direction

NAMES = (
    "model.layers.0.q_proj.weight",
    "model.layers.0.up_proj.weight",
    "model.layers.1.q_proj.weight",
    "lm_head.weight",
)


def sums(inner: list[list[float]], update: list[float], names: tuple[str, ...] = NAMES) -> Sums:
    """Return sums over four tensors in which every direction has norm 2, half of its square within reach."""
    inners = np.array(inner, dtype=np.float64)
    return Sums(
        names=names,
        sizes=(100,) * 4,
        update=np.array(update, dtype=np.float64),
        inner=inners,
        reached=np.full_like(inners, 0.5),
        direction=np.ones_like(inners),
        freedom=np.full(4, 100.0),
    )


def directions(*kinds: str) -> list[Direction]:
    return [
        Direction.from_tensors({name: torch.ones(1) for name in NAMES}, name=f"{kind}{k}", metadata={"kind": kind})
        for k, kind in enumerate(kinds)
    ]


def example() -> Reading:
    found = sums([[0.5, 0.1], [0.25, -0.1], [-0.5, 0.0], [0.75, 0.1]], [1, 4, 4, 16])
    watched = directions("behaviour", "control")
    return read(found, watched, step=40, time="2026-01-01T00:00:00.000+00:00", tensors=True)


def test_figures_are_sums_over_the_part_first_and_then_one_division() -> None:
    evil = example()["behaviour0"]
    assert evil.cosine == pytest.approx(1.0 / (5 * 2))
    assert evil.reach_cosine == pytest.approx(1.0 / (5 * 2**0.5))
    assert evil.dose == pytest.approx(1.0 / 4)
    assert evil.reach == pytest.approx(0.5**0.5)
    assert evil.layers[0].cosine == pytest.approx(0.75 / (5**0.5 * 2**0.5))
    assert evil.layers[0].dose == pytest.approx(0.75 / 2)
    assert evil.modules["q_proj"].cosine == 0.0
    assert evil.tensors["lm_head.weight"].cosine == pytest.approx(0.75 / 4)
    assert example().update_norm == 5.0


def test_parts_are_the_layers_and_the_kinds_of_module() -> None:
    evil = example()["behaviour0"]
    assert list(evil.layers) == [0, 1]
    assert set(evil.modules) == {"q_proj", "up_proj", "lm_head"}
    assert set(evil.tensors) == set(NAMES)


def test_layers_of_further_stacks_come_after_those_of_the_main_one_and_read_back() -> None:
    names = tuple(
        f"{stack}.{i}.layer.0.SelfAttention.q.weight" for stack in ("encoder.block", "decoder.block") for i in (10, 9)
    )
    directions = [Direction.from_tensors({name: torch.ones(1) for name in names}, name="evil")]
    reading = read(sums([[0.1], [0.2], [0.3], [0.4]], [1] * 4, names), directions, step=0, time="")
    evil = reading["evil"]
    assert list(evil.layers) == [9, 10, "encoder.block.9", "encoder.block.10"]
    assert [score.dose for score in evil.layers.values()] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert {kind: score.dose for kind, score in evil.modules.items()} == pytest.approx(
        {"q": 0.7 / 2, "encoder.block.q": 0.3 / 2}
    )
    assert Reading.from_json(json.dumps(reading.to_json())) == reading


def test_shares_add_up_to_the_cosine_of_the_model() -> None:
    evil = example()["behaviour0"]
    for parts in (evil.modules, evil.tensors):
        assert sum(part.share for part in parts.values()) == pytest.approx(evil.cosine)
    assert evil.layers[0].share == pytest.approx(0.75 / 10)


def test_z_is_the_reach_cosine_over_controls_and_chance() -> None:
    reading = example()
    null = ((0.1 / (5 * 2**0.5)) ** 2 + 1 / 400) ** 0.5
    assert reading["behaviour0"].z == pytest.approx(reading["behaviour0"].reach_cosine / null)
    assert reading["control1"].z is None
    assert reading["behaviour0"].layers[1].z == pytest.approx(-0.5 / 2 / 0.5**0.5 / (0 + 1 / 100) ** 0.5)


def test_z_takes_the_mean_square_of_several_controls_whatever_their_signs() -> None:
    found = sums([[0.5, 0.4, -0.4]] * 4, [1, 4, 4, 16])
    reading = read(found, directions("behaviour", "control", "control"), step=0, time="")
    alone = read(sums([[0.5, 0.4]] * 4, [1, 4, 4, 16]), directions("behaviour", "control"), step=0, time="")
    assert reading["behaviour0"].z == pytest.approx(alone["behaviour0"].z)


@pytest.mark.parametrize("along", [0.4, -0.4])
def test_over_controls_takes_shuffled_labels_by_their_absolute_value_and_other_controls_by_their_sign(
    along: float,
) -> None:
    table, watched = sums([[0.5, along]] * 4, [1, 4, 4, 16]), directions("behaviour", "control")
    evil, control = read(table, watched, step=0, time="").directions.values()
    assert evil.over_controls == pytest.approx(evil.reach_cosine - control.reach_cosine)
    watched[1] = watched[1].with_card(shuffled=True)
    shuffled = read(table, watched, step=0, time="")["behaviour0"]
    assert shuffled.over_controls == pytest.approx(evil.reach_cosine - abs(control.reach_cosine))
    assert shuffled.layers[0].over_controls == pytest.approx(
        evil.layers[0].reach_cosine - abs(control.layers[0].reach_cosine)
    )
    assert (shuffled.z, shuffled.reach_cosine) == (evil.z, evil.reach_cosine)


def test_without_controls_there_is_no_z() -> None:
    reading = read(sums([[0.5]] * 4, [1] * 4), directions("behaviour"), step=0, time="")
    scores = [reading["behaviour0"], *reading["behaviour0"].layers.values()]
    assert [score.z for score in scores] == [None] * 3


def test_a_control_without_weights_in_a_part_says_nothing_about_it() -> None:
    found = sums([[0.5, 0.4]] * 4, [1, 4, 4, 16])
    found.direction[:2, 1] = 0
    reading = read(found, directions("behaviour", "control"), step=0, time="", tensors=True)
    tensors = reading["behaviour0"].tensors
    assert [score.z is None for score in tensors.values()] == [True, True, False, False]


def test_nothing_moved_reads_as_zero_and_not_as_nan() -> None:
    reading = read(sums([[0.0, 0.0]] * 4, [0] * 4), directions("behaviour", "control"), step=0, time="")
    evil = reading["behaviour0"]
    assert reading.update_norm == 0.0
    assert (evil.cosine, evil.reach_cosine, evil.dose, evil.share, evil.z) == (0, 0, 0, 0, 0)
    assert evil.reach == pytest.approx(0.5**0.5)


def test_scores_of_single_tensors_are_made_only_if_wanted() -> None:
    found = sums([[0.5], [0.25], [-0.5], [0.75]], [1, 4, 4, 16])
    (evil,) = read(found, directions("behaviour"), step=0, time="").directions.values()
    assert evil.tensors == {}
    assert evil.modules["lm_head"].cosine == pytest.approx(0.75 / 4)


def test_a_line_of_json_reads_back_the_same() -> None:
    reading = example()
    text = json.dumps(reading.to_json(), allow_nan=False)
    assert Reading.from_json(text) == reading
    line = json.loads(text)
    assert "tensors" not in line["directions"]["behaviour0"]
    assert line["directions"]["behaviour0"]["layers"]["0"]["cosine"] == reading["behaviour0"].layers[0].cosine


def test_what_a_guard_has_done_is_in_the_line_and_reads_back_the_same() -> None:
    reading = replace(example(), guard=Guarded(8, {"behaviour0": 0.25}, 0.5))
    line = reading.to_json()
    assert line["guard"] == {"steps": 8, "dose": {"behaviour0": 0.25}, "share": 0.5}
    assert Reading.from_json(json.dumps(line)) == reading
    assert "guard" not in example().to_json()


def test_a_reading_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        example().step = 3  # type: ignore[misc]  # what must not work


def altered(path: str, value: object) -> str:
    """Return the line of a reading with one entry replaced."""
    line = example().to_json()
    *parents, last = path.split("/")
    for key in parents:
        line = line[key]
    line[last] = value
    return json.dumps(line)


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"step": 1, "directions": {"evil": {}}}',
        altered("update_norm", "1.3"),
        altered("update_norm", float("nan")),
        altered("update_norm", None),
        altered("step", "1"),
        altered("step", -1),
        altered("step", True),
        altered("directions/behaviour0/cosine", "0.3"),
        altered("directions/behaviour0/dose", float("inf")),
        altered("directions/behaviour0/reach", [0.5]),
        altered("directions/behaviour0/layers", {"0": {"cosine": 0.1}}),
        altered("directions/behaviour0", None),
        altered("directions", []),
        altered("left_out", {"w": 1}),
        altered("guard", {"steps": -1, "dose": {}, "share": 0.0}),
        altered("guard", {"steps": 1, "dose": {"evil": float("nan")}, "share": 0.0}),
        altered("guard", {"steps": 1, "dose": {}}),
        "[" * 100_000,
    ],
)
def test_what_is_no_reading_is_refused(line: str) -> None:
    with pytest.raises(ValidationError):
        Reading.from_json(line)
