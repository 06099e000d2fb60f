from weightwatch.report.channels.allowance import HOUR, Allowance


def test_the_hour_slides() -> None:
    allowance = Allowance(2)
    assert [allowance.take(now) for now in (0.0, 1800.0, 1900.0, HOUR, HOUR + 1, HOUR + 1800)] == [
        True,
        True,
        False,
        True,
        False,
        True,
    ]
    assert allowance.wait(HOUR + 1800) == 1800.0
