from dataclasses import replace

from tests.rules.test_alert import ALERT
from weightwatch.requests import Requests


def test_one_of_several_alerts_is_enough_for_each_request() -> None:
    saves, logs = replace(ALERT, actions=("log", "save")), replace(ALERT, actions=("log", "guard"))
    assert Requests.of([logs]) == Requests(save=False, stop=False)
    assert Requests.of([logs, saves]) == Requests(save=True, stop=False)
    assert Requests.of([saves, replace(ALERT, actions=("stop",))]) == Requests(save=True, stop=True)


def test_a_resolved_alert_requests_nothing() -> None:
    assert Requests.of([replace(ALERT, state="resolved", actions=())]) == Requests()
