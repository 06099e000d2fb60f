import pytest
import torch

from weightwatch.vectors import Card, Direction, WeightWatchError
from weightwatch.vectors.validation import Validation


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [({"sede": 1}, "metadata sede: .*Known fields: name, kind"), ({"kind": "evil"}, "metadata kind: .*behaviour")],
)
def test_metadata_that_is_not_a_cards_is_an_error(metadata: dict[str, object], reason: str) -> None:
    with pytest.raises(WeightWatchError, match=reason):
        Direction.from_tensors({"a.weight": torch.ones(2)}, name="evil", metadata=metadata)


def test_a_direction_is_in_doubt_until_its_validation_passes() -> None:
    card = Card(name="evil")
    failed = Validation(passed=False, reasons=("too weak", "too costly"), points=(), items=5, tasks=6)
    passed = failed.model_copy(update={"passed": True})
    assert card.doubt == "its effect was never evaluated"
    assert card.model_copy(update={"validation": failed}).doubt == "too weak; too costly"
    assert card.model_copy(update={"validation": passed}).doubt is None
