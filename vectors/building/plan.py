"""How much work a build is, before it starts."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightwatch.vectors.building.answers import SIDES, asks

if TYPE_CHECKING:
    from weightwatch.vectors.building.pipeline import Settings
    from weightwatch.vectors.recipes.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The work of a build that starts from nothing. What an earlier run has left is not done again.

    Attributes:
        answers: Number of answers to draw.
        verdicts: Largest number of verdicts: equal answers to a question are judged once.
        fine_tunes: Number of fine-tunes: two sides for each learning rate on the first seed, for each other seed, and
            for each seed of each control.
        steps: Largest number of optimizer steps of a fine-tune. Answers that are not kept make it fewer.
    """

    answers: int
    verdicts: int
    fine_tunes: int
    steps: int

    @classmethod
    def of(cls, recipe: "Recipe", settings: "Settings", controls: int = 0) -> "Plan":
        """Return the work of a build with some settings, and of some controls with shuffled labels."""
        questions = recipe.questions.building
        drawn = Counter(side for batch in asks(recipe, settings.sampling) for side, *_ in batch)
        pairs, written = min(drawn[side] for side in SIDES), 0
        if not recipe.systems.positive:
            pairs = sum(min(len(question.positive), len(question.negative)) for question in questions)
            written = sum(len(question.positive) + len(question.negative) for question in questions)
        training = settings.training
        return cls(
            answers=drawn.total(),
            verdicts=drawn.total() + written,
            fine_tunes=len(SIDES) * (len(training.learning_rates) + (1 + controls) * len(settings.seeds) - 1),
            steps=training.steps(pairs),
        )
