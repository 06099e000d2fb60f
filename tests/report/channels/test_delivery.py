from typing import Any

import anyio
import pytest

from weightwatch.report.channels.base import Channel, Undelivered
from weightwatch.report.channels.delivery import TRIES, Delivery
from weightwatch.report.channels.message import Message


class Failing(Channel):
    """Fails in given ways, one after the other."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]

    async def send(self, message: Message) -> None:
        if self.errors:
            raise self.errors.pop(0)


def delivered(*errors: Exception) -> Delivery:
    delivery = Delivery()
    anyio.run(delivery.attempt_again, Failing(*errors), Message("run", "title", "text"), 5.0)
    return delivery


def busy() -> Undelivered:
    return Undelivered("busy", pause=0.0)


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ([], Delivery(True, 1, None)),
        ([busy(), busy()], Delivery(True, 3, None)),
        ([busy()] * TRIES, Delivery(False, TRIES, "busy")),
        ([Undelivered("gone", again=False)], Delivery(False, 1, "gone")),
    ],
)
def test_attempts_are_repeated_while_that_is_of_use(errors: list[Any], outcome: Delivery) -> None:
    assert delivered(*errors) == outcome


def test_an_unforeseen_fault_is_told_by_its_name_alone() -> None:
    delivery = Delivery()
    channel = Failing(*[RuntimeError("https://secret")] * 2)
    anyio.run(delivery.attempt_again, channel, Message("run", "title", "text"), 5.0, 1)
    assert delivery.error == "RuntimeError in the channel"
