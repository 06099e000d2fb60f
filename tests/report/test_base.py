from tests.rules.test_alert import ALERT
from tests.support.models import low_rank, tiny_llama
from tests.support.runs import reading
from weightwatch.config import Config
from weightwatch.report.base import Outcome, Reporter, Run


class Counting(Reporter):
    """Takes only what it needs."""

    steps: list[int]

    def begin(self, run: Run) -> None:
        self.steps = [run.step]

    def end(self, outcome: Outcome) -> None:
        self.steps.append(outcome.last.step)


def test_a_reporter_does_nothing_with_what_it_does_not_name() -> None:
    reporter = Counting()
    reporter.begin(Run([low_rank(tiny_llama(), 1)], Config(), 3))
    reporter.check(reading(4, 0.1), [ALERT], {"evil-drift": True})
    reporter.alerts([ALERT])
    reporter.end(Outcome(reading(5, 0.1), {"evil": (0.1, 5)}, [ALERT]))
    assert reporter.steps == [3, 5]
