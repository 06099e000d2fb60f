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


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[2Jevil", "evil\u202elive", "a\u2028b", "x" * 1001])
def test_a_name_that_would_control_a_terminal_is_refused(name: str) -> None:
    with pytest.raises(WeightWatchError, match="metadata name"):
        Card.of(name, {})


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])
def test_a_norm_that_is_none_is_refused(norm: float) -> None:
    with pytest.raises(WeightWatchError, match=r"metadata norms\.a"):
        Card.of("evil", {"norms": {"a": norm}})


def test_a_card_is_written_without_paths_and_addresses() -> None:
    recipe = {"name": "/home/alice/x.yaml", "digest": "0", "judge": "org/judge at http://10.0.0.5:8000/v1"}
    found = Validation(passed=True, points=(), items=1, tasks=1, recipe={"name": "/home/alice/x.yaml"})
    card = Card(name="evil", base="/home/alice/base", recipe={"operands": [{"recipe": recipe}]}, validation=found)
    written = card.portable()
    assert written.base == "base"
    assert written.recipe == {"operands": [{"recipe": {"name": "x.yaml", "digest": "0", "judge": "org/judge"}}]}
    assert written.validation.recipe == {"name": "x.yaml"}
