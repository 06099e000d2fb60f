"""The choice of a judge by name."""

import re
from typing import TYPE_CHECKING

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.judges.chat_model import ChatModel, generates
from weightwatch.vectors.judges.classifier import Classifier
from weightwatch.vectors.judges.endpoint import Endpoint
from weightwatch.vectors.judges.judge import Judge, Rule
from weightwatch.vectors.recipes.verdicts import ModelJudge

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.recipe import Recipe

RULE = "rule"
"""The name of the recipe's own rule."""


def chosen(recipe: "Recipe", judge: str = RULE, model: str | None = None) -> Judge:
    """Return a judge by name.

    Args:
        recipe: The recipe with the rule or the rubric.
        judge: ``rule``, the address of an OpenAI-compatible endpoint, or a local chat model or text classifier (a
            folder, or a Hub id; the architecture in its config tells which).
        model: Name of the model at the endpoint. Default: the first that the endpoint lists.

    Raises:
        WeightWatchError: The recipe has no rule, or no rubric, and needs one; or there is no such judge.
    """
    if judge == RULE:
        if isinstance(recipe.judge, ModelJudge):
            raise WeightWatchError(
                f"Recipe {recipe.name!r} has no rule of its own: a model has to rate its answers. Pass --judge with "
                "the address of an OpenAI-compatible endpoint (http://localhost:8000/v1), a local chat model, or a "
                "text classifier."
            )
        return Rule(recipe.judge)
    if not isinstance(recipe.judge, ModelJudge):
        raise WeightWatchError(
            f"Recipe {recipe.name!r} has its own rule and no rubric for a model. Leave --judge out, or write "
            "`by: model` and a rubric under `judge:` in the recipe."
        )
    if re.match(r"https?://", judge, re.IGNORECASE):
        return Endpoint(recipe.judge, judge, model)
    if "://" in judge or "@" in judge:  # may have a password, and is not repeated
        raise WeightWatchError("The judge's address has to begin with http:// or https://.")
    return ChatModel(recipe.judge, judge) if generates(judge) else Classifier(recipe.judge, judge)


def chosen_if_any(recipe: "Recipe", judge: str, model: str | None) -> Judge | None:
    """Return a judge by name, or None if the rule is asked for and the recipe has none."""
    return None if judge == RULE and isinstance(recipe.judge, ModelJudge) else chosen(recipe, judge, model)
