import json
import sys
from pathlib import Path

import anyio
import pytest

from tests.support.receivers import an_alert
from weightwatch import WeightWatchError
from weightwatch.report.channels.command import Command
from weightwatch.report.channels.message import Message

CODE = """
import json, os, sys
own = {key: value for key, value in os.environ.items() if key.startswith("WEIGHTWATCH_")}
open(sys.argv[1], "w").write(json.dumps([json.load(sys.stdin), own]))
"""


def test_a_program_gets_the_alert_as_json_and_in_its_environment(tmp_path: Path) -> None:
    message = Message.of(an_alert("drift; $(reboot)\0", severity="critical"), "fine-tune")
    anyio.run(Command([sys.executable, "-c", CODE, str(tmp_path / "out")]).send, message)
    body, own = json.loads((tmp_path / "out").read_text())
    assert body == json.loads(json.dumps(message.to_json()))
    assert own.pop("WEIGHTWATCH_TEXT") == message.text
    assert own == {
        "WEIGHTWATCH_RUN": "fine-tune",
        "WEIGHTWATCH_TITLE": "drift; $(reboot)\\x00 firing",
        "WEIGHTWATCH_ALERT": "drift; $(reboot)\\x00",
        "WEIGHTWATCH_STATE": "firing",
        "WEIGHTWATCH_SEVERITY": "critical",
        "WEIGHTWATCH_STEP": "40",
    }


def test_a_program_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(WeightWatchError, match="no program 'no-such-program'"):
        Command(["no-such-program"])
