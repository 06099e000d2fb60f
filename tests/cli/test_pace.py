from weightwatch.cli.pace import Pace


def test_the_pace_is_that_of_the_steps_since_the_stage_began() -> None:
    times = iter([100.0, 110.0, 200.0, 203.0])
    pace = Pace(lambda: next(times))
    pace.tell("answers", 0, 40)
    assert pace.step("answers") is None
    assert pace.left("answers") is None
    pace.tell("answers", 10, 40)
    assert (pace.spent("answers"), pace.step("answers"), pace.left("answers")) == (10.0, 1.0, 30.0)
    pace.tell("verdicts", 500, 1000)  # of an earlier run
    pace.tell("verdicts", 501, 1000)
    assert pace.left("verdicts") == 3.0 * 499
