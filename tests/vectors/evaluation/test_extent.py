from itertools import pairwise

from weightwatch.vectors import Recipe
from weightwatch.vectors.evaluation.extent import COEFFICIENTS, QUICK, Extent
from weightwatch.vectors.recipes.verdicts import WrittenJudge

EVIL = Recipe.load("organism/evil")


def test_a_sweep_asks_everything_at_every_coefficient() -> None:
    extent = Extent.of(EVIL, [1.0, -1.0], judged=True)
    assert extent.coefficients == [-1.0, 0.0, 1.0]
    assert (extent.items, extent.tasks) == (EVIL.evaluation, EVIL.neutral.tasks)
    assert extent.replies == len(EVIL.questions.held_out)
    assert Extent.of(EVIL, judged=False).replies == 0
    assert Extent.of(EVIL, judged=True).coefficients == list(COEFFICIENTS)


def test_a_quick_one_asks_less_of_everything_and_takes_it_from_the_whole_list() -> None:
    extent = Extent.of(EVIL, judged=True, quick=True)
    assert extent.coefficients == sorted({0.0, *QUICK})
    assert len(EVIL.evaluation) > len(extent.items) == 32
    places = [EVIL.evaluation.index(item) for item in extent.items]
    steps = {after - before for before, after in pairwise(places)}
    assert max(steps) - min(steps) <= 1
    assert places[-1] >= len(EVIL.evaluation) - max(steps)
    assert extent.replies == 0


def test_written_answers_judge_no_replies() -> None:
    recipe = EVIL.model_copy(update={"judge": WrittenJudge(by="written")})
    assert Extent.of(recipe, judged=True).replies == 0
