"""The pilot of a long draw of answers: few answers, judged before the others are drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightwatch.vectors.building.answers import SIDES, Answer, Side
from weightwatch.vectors.building.verdicts import Judged
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.judges.judge import Judgement

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.recipe import Recipe

_EXAMPLES = 2  # answers in a message
_SHOWN = 160  # characters of each


@dataclass(frozen=True)
class Pilot:
    """The yield of a pilot.

    Attributes:
        asked: Number of pilot answers of each side.
        shown: How many of them show their side.
        planned: Number of answers of each side in the whole draw.
        failed: Pilot answers that do not show their side.
    """

    asked: Mapping[Side, int]
    shown: Mapping[Side, int]
    planned: Mapping[Side, int]
    failed: Mapping[Side, Sequence[str]]

    @classmethod
    def of(
        cls,
        recipe: "Recipe",
        answers: Sequence[Answer],
        kept: Mapping[Judged, Judgement],
        planned: Mapping[Side, int],
    ) -> "Pilot":
        """Return the yield of judged pilot answers, at least one of each side."""
        failed: dict[Side, list[str]] = {side: [] for side in SIDES}
        for answer in answers:
            verdict = kept[recipe.questions.building[answer.question].text, answer.text].verdict
            if not answer.text or verdict != answer.side:
                failed[answer.side].append(answer.text)
        asked = {side: sum(answer.side == side for answer in answers) for side in SIDES}
        return cls(asked, {side: asked[side] - len(failed[side]) for side in SIDES}, planned, failed)

    @property
    def expected(self) -> int:
        """Number of pairs to expect: planned · shown / asked of the side that yields less."""
        return min(self._yield(side) for side in SIDES)

    def _yield(self, side: Side) -> int:
        return self.planned[side] * self.shown[side] // self.asked[side]

    def __str__(self) -> str:
        counts = " and ".join(f"{self.shown[side]} of {self.asked[side]} {side}" for side in SIDES)
        drawn = sum(self.planned.values())
        return f"pilot: {counts} answers show their side; expect about {self.expected} pairs of {drawn} answers"

    def require(self, min_pairs: int) -> None:
        """Make sure that the draw can be expected to give enough pairs.

        Raises:
            WeightWatchError: It can't. The message names the side that fails, with two of its answers.
        """
        if self.expected >= min_pairs:
            return
        failing = [side for side in SIDES if self._yield(side) < min_pairs]
        examples = [text for side in failing for text in self.failed[side][:_EXAMPLES]][:_EXAMPLES]
        quoted = " and ".join(repr(text[:_SHOWN]) for text in examples) or "none"
        raise WeightWatchError(
            f"The {' and the '.join(failing)} side fails in the {self}, and at least {min_pairs} are needed. Answers "
            f"that do not show it: {quoted}. Make the system prompts of that side clearer, check the judge, write the "
            "answers out, sample more (--num-samples), or draw all of them anyway with --no-pilot."
        )
