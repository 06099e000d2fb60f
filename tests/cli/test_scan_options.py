import pytest

from tests.support.commands import call
from weightwatch.cli.exit_status import BAD_INPUT


@pytest.mark.parametrize(
    ("option", "value", "least"), [("--poll", "0.01", "0.05"), ("--until-idle", "-1", "0"), ("--stop-after", "0", "1")]
)
def test_a_number_below_its_limit_is_refused_with_the_limit(option: str, value: str, least: str) -> None:
    done = call("scan", "run", "-d", "evil", "--follow", option, value)
    assert done.exit_code == BAD_INPUT
    assert f"Invalid value for '{option}'" in done.output
    assert least in done.output.partition(option)[2]
