from dataclasses import replace

from tests.support import chat
from weightwatch.vectors.building.answers import Sampling
from weightwatch.vectors.building.fine_tunes import Training
from weightwatch.vectors.building.pipeline import Settings
from weightwatch.vectors.building.plan import Plan

SETTINGS = Settings(
    sampling=Sampling(num_samples=4), training=Training(learning_rates=(1e-4, 1e-3), batch_size=8), seeds=(1, 2, 3)
)


def test_the_work_is_counted_before_it_starts() -> None:
    plan = Plan.of(chat.recipe(5), SETTINGS)
    assert (plan.answers, plan.verdicts) == (5 * 4 * 4, 5 * 4 * 4)
    assert plan.fine_tunes == 2 * (2 + 2)
    assert plan.steps == 5  # 40 pairs, 8 a step


def test_written_answers_are_not_drawn() -> None:
    plan = Plan.of(chat.recipe(5, systems={}), replace(SETTINGS, training=Training(num_train_epochs=2.0)))
    assert (plan.answers, plan.verdicts) == (0, 5 * 4)
    assert plan.steps == 2  # 10 pairs, twice
