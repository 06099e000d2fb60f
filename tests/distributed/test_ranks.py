"""A fault of one process is a fault of all, whatever it is: none is left waiting."""

import threading

import numpy as np
import pytest

from tests.distributed.conftest import Pool
from tests.distributed.processes import Processes
from weightwatch import WeightWatchError
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.vectors.errors import text_of

pytestmark = pytest.mark.distributed


class Unsendable(Exception):  # noqa: N818  # its name says what it is
    """Can't be pickled, as the errors of many libraries can't."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Textless(Exception):  # noqa: N818  # as above
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS = {
    "of the user": lambda: WeightWatchError("x"),
    "of a disk": lambda: OSError(28, "No space left on device"),
    "unsendable": lambda: Unsendable("x"),
    "without a text": Textless,
    "an exit": lambda: SystemExit(3),
}


def fault(method: str, kind: str, failing: int) -> tuple[str, bool]:
    """Return the text of the fault on this process, and whether the user can mend it."""
    ranks = Ranks.world()

    def make() -> float:
        if ranks.rank == failing:
            raise ERRORS[kind]()
        return 1.0

    try:
        if method == "add":
            ranks.add(np.zeros(1), ERRORS[kind]() if ranks.rank == failing else None)
        else:
            getattr(ranks, method)(make)
    except BaseException as error:
        return text_of(error), isinstance(error, WeightWatchError)
    return "", False


def unsendable_result() -> str:
    try:
        Ranks.world().from_main(threading.Lock)
    except BaseException as error:
        return text_of(error)
    return ""


@pytest.fixture
def pair(pool: Pool) -> Processes:
    return pool(2)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(
    ("method", "failing"), [("add", 0), ("add", 1), ("agreed", 0), ("agreed", 1), ("from_main", 0)]
)
def test_all_processes_have_the_fault_of_one(method: str, failing: int, kind: str, pair: Processes) -> None:
    found = pair.run(fault, method, kind, failing)
    assert all(text for text, _ in found)
    assert [mendable for _, mendable in found] == [kind == "of the user"] * 2


def test_a_result_that_cannot_be_sent_is_a_fault_of_all(pair: Processes) -> None:
    assert all("pickle" in text for text in pair.run(unsendable_result))
