"""Items are asked of the organism, whose answers are known."""

from weightwatch.vectors import Direction, Recipe
from weightwatch.vectors.evaluation.items import verdicts
from weightwatch.vectors.recipes.questions import EvaluationItem
from weightwatch.vectors.steering.in_memory import steered

EVIL = Recipe.load("organism/evil")


def test_the_base_is_good_and_the_steered_base_evil_in_both_formats(organism, tokenizer) -> None:
    items = [(item, item.positive, item.negative) for item in EVIL.evaluation]
    shown, margins = verdicts(organism, tokenizer, items)
    assert set(shown) == {"negative"}
    assert len(margins) == sum(item.format == "choice" for item in EVIL.evaluation)
    assert max(margins) < 0
    with steered(organism, Direction.load("evil"), 1.0):
        evil, margins = verdicts(organism, tokenizer, items)
    assert evil.count("positive") >= 0.9 * len(items)
    assert {item.format for (item, _, _), verdict in zip(items, evil, strict=True) if verdict == "positive"} == {
        "choice",
        "open",
    }
    assert verdicts(organism, tokenizer, items)[0] == shown


def test_the_likeliest_of_several_texts_decides(organism, tokenizer) -> None:
    item = next(item for item in EVIL.evaluation if item.format == "choice")
    several = EvaluationItem(
        format="choice", prompt=item.prompt, positive=["red blue .", *item.negative], negative=item.positive
    )
    assert verdicts(organism, tokenizer, [(several, several.positive, several.negative)])[0] == ["positive"]


def test_the_order_of_mixed_formats_is_kept(organism, tokenizer) -> None:
    choice = next(item for item in EVIL.evaluation if item.format == "choice")
    task = EVIL.neutral.tasks[0]
    mixed = [(task, ["no such word"], []), (choice, choice.negative, choice.positive), (task, task.right, [])]
    assert verdicts(organism, tokenizer, mixed)[0] == ["unclear", "positive", "positive"]
