import pytest
from pydantic import ValidationError

from weightwatch.vectors.validation import Point, Validation

POINTS = (
    Point(k=-1.0, shows=0.0, opposite=1.0, neutral=1.0),
    Point(k=0.0, shows=0.1, opposite=0.9, margin=-2.5, neutral=1.0),
    Point(k=1.0, shows=0.9, opposite=0.0, margin=1.5, asked=0.8, neutral=0.95),
)


def test_a_validation_reads_back_from_a_card_as_it_was_written() -> None:
    made = Validation(passed=True, points=POINTS, items=20, tasks=40, seeds={"1, 2": 0.4}, others={"style": -0.01})
    again = Validation.model_validate_json(made.model_dump_json())
    assert again == made
    assert (again.points[2].asked, again.points[0].margin, again.reasons) == (0.8, None, ())


@pytest.mark.parametrize("change", [{"passed": None}, {"points": [{"k": 1.0}]}, {"colour": "red"}])
def test_a_card_that_says_anything_else_is_refused(change: dict[str, object]) -> None:
    good = {"passed": True, "points": [], "items": 1, "tasks": 1}
    with pytest.raises(ValidationError):
        Validation.model_validate({**good, **change})


def test_what_was_found_is_not_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        POINTS[0].shows = 1.0  # type: ignore[misc]
