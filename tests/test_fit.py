from pathlib import Path

import pytest

from tests.support.models import dense, low_rank, tiny_llama
from weightwatch import Direction, WeightWatchError
from weightwatch.fit import misfits
from weightwatch.organism import BASE
from weightwatch.vectors.catalog import PACKAGED


def test_directions_of_the_model_fit_and_those_of_another_say_why(tmp_path: Path) -> None:
    evil, hostile = Direction.load(PACKAGED / "evil"), Direction.load(PACKAGED / "smollm2" / "hostile")
    assert misfits([evil], str(BASE)) == {}
    (reason,) = misfits([evil, hostile], str(BASE)).values()
    assert "Direction 'hostile' was built from weightwatch/smollm2, not from" in reason


def test_a_direction_without_a_fingerprint_is_compared_by_its_tensors(tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    fits, other = dense(model, 1), low_rank(model, 2, name="other")
    assert misfits([fits, other], str(tmp_path / "base")) == {}
    wrong = misfits([fits], str(BASE))
    assert list(wrong) == ["evil"]


def test_a_model_that_is_not_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match="is not a local folder"):
        misfits([dense(tiny_llama(), 1)], str(tmp_path / "none"))
