import inspect

from weightwatch.cli.build import build
from weightwatch.cli.show import show


def test_build_and_show_evaluate_with_the_same_options() -> None:
    shared = ("judge", "judge_model", "coefficient", "control")
    first, second = (inspect.signature(command).parameters for command in (build, show))
    assert [first[name] for name in shared] == [second[name] for name in shared]
