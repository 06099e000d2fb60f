import subprocess
import sys

import pytest

from weightwatch.report.channels.apprise import URLS

PROGRAM = [sys.executable, "-P", "-m", "weightwatch.report.channels.apprise_process"]


@pytest.mark.parametrize("urls", ["nonsense", "json://127.0.0.1:1/"])
def test_what_can_not_be_sent_is_a_status(urls: str) -> None:
    done = subprocess.run(PROGRAM, input=b'{"title": "a", "body": "b"}', env={URLS: urls}, check=False)
    assert done.returncode == 1
