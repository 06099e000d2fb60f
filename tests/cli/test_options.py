import inspect

import pytest

from tests.support.commands import call
from weightwatch.cli.build import build
from weightwatch.cli.exit_status import BAD_INPUT
from weightwatch.cli.show import show


def test_build_and_show_evaluate_with_the_same_options() -> None:
    shared = ("judge", "judge_model", "coefficient", "control", "trust_remote_code")
    first, second = (inspect.signature(command).parameters for command in (build, show))
    assert [first[name] for name in shared] == [second[name] for name in shared]


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "evil", "--model", "organism", "--temperature", "inf"],
        ["build", "evil", "--model", "organism", "--learning-rate", "1e-4", "--learning-rate", "inf"],
        ["build", "evil", "--model", "organism", "--num-train-epochs", "inf"],
        ["show", "evil", "--evaluate", "--coefficient", "nan"],
        ["scan", "run", "-d", "evil", "--follow", "--poll", "inf"],
        ["scan", "run", "-d", "evil", "--follow", "--until-idle", "inf"],
        ["steer", "run", "evil", "--output", "out", "--coefficient", "nan"],
    ],
)
def test_a_number_that_is_none_is_refused_before_anything_is_done(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.exit_code == BAD_INPUT
    assert "is not a finite number" in done.output
