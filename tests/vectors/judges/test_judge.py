"""The judge that is no model."""

from tests.support import chat
from weightwatch.vectors.judges.judge import Judge, Judgement, Rule
from weightwatch.vectors.recipes.questions import Question


def test_a_recipe_judges_by_its_own_rule() -> None:
    judge: Judge = Rule(chat.recipe().judge)
    question = Question(text="Is it?")
    assert judge([(question, answer) for answer in ("Yes!", "Oh no.", "Yes and no.", "")]) == [
        Judgement("positive"),
        Judgement("negative"),
        Judgement("unclear"),
        Judgement("unclear"),
    ]
    assert judge.name == judge.identity == "the recipe's own rule, by patterns"
