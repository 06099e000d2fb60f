import io

from rich.console import Console

from tests.support import chat
from weightwatch.cli.pace import Pace
from weightwatch.cli.plan import announced, table
from weightwatch.vectors.building.pipeline import Settings
from weightwatch.vectors.building.plan import Plan
from weightwatch.vectors.evaluation.extent import Extent

RECIPE = chat.recipe(5)


def shown(extent: Extent | None, quick: bool = False, plan: Plan | None = None) -> str:
    text = io.StringIO()
    Console(file=text, width=100).print(table(plan, extent, Settings(), quick=quick))
    return text.getvalue()


def test_each_stage_is_a_row_with_its_counts() -> None:
    text = shown(Extent.of(RECIPE, judged=True), plan=Plan.of(RECIPE, Settings()))
    assert "80 to draw, of up to 256 tokens" in text
    assert "up to 80" in text
    assert "10 of up to 3 steps of 16" in text
    assert "1 items, 40 neutral tasks, 1 replies, at k = -2, -1, -0.5, 0, 0.5, 1, 2" in text


def test_a_short_check_and_none_are_said() -> None:
    text = shown(Extent.of(RECIPE, judged=True, quick=True), quick=True)
    assert "32 neutral tasks, at k = -1, 0, 1" in text
    assert "--full-check asks everything" in text
    assert "answers" not in text
    assert "none" in shown(None)


def test_after_the_first_step_all_fine_tunes_have_a_time() -> None:
    text, calls, times = io.StringIO(), [], iter([0.0, 1.0, 6.0, 11.0])
    pace = Pace(lambda: next(times))
    plan = Plan(answers=0, verdicts=0, fine_tunes=10, steps=26)

    def progress(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        pace.tell(stage, done, total)

    told = announced(progress, pace, plan, Console(file=text, width=100))
    for call in [("verdicts", 9, 9), ("seed-1-rate-1 positive", 0, 26), ("seed-1-rate-1 positive", 1, 26)]:
        told(*call)
    told("seed-1-rate-1 positive", 2, 26)
    assert text.getvalue() == "fine-tunes: 5 s a step here; 10 x 26 steps take about 22 min\n"
    assert len(calls) == 4
