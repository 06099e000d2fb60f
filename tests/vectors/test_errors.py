import pytest

from weightwatch.vectors import Direction, WeightWatchError


def test_what_a_user_can_mend_is_one_family_and_a_value_error() -> None:
    with pytest.raises(ValueError, match="has no tensors") as caught:
        Direction.from_tensors({}, name="evil")
    assert type(caught.value) is WeightWatchError
