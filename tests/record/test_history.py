import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.test_alert import ALERT
from tests.support.runs import reading
from weightwatch import WeightWatchError
from weightwatch.record.history import History, State
from weightwatch.rules.engine import RuleState

FILES = ("readings.jsonl", "alerts.jsonl", "errors.jsonl")

ENDLESS = """
import sys
from tests.support.runs import reading
from weightwatch.record.history import History
history = History(sys.argv[1])
for step in range(10**9):
    history.add_reading(reading(step, 0.1, layers=[0.5] * 200))
    print(step, flush=True)
"""


def recorded(folder: Path, steps: list[int]) -> History:
    history = History(folder / "weightwatch")
    for step in steps:
        history.add_reading(reading(step, 0.1 * step, layers=[0.1, 0.2], modules={"q_proj": 0.3}))
    return history


def superseded(history: History) -> list[tuple[str, str]]:
    path = history.folder / "superseded.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(entry["file"], entry["line"]) for entry in found]


def test_what_was_recorded_reads_back_equal(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    history.add_alert(ALERT)
    assert list(history.readings()) == [
        reading(step, 0.1 * step, layers=[0.1, 0.2], modules={"q_proj": 0.3}) for step in (0, 5)
    ]
    assert history.alerts() == [ALERT]


def test_a_fault_is_recorded_with_its_step_and_kind(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add_error(7, WeightWatchError("NaN in w"))
    line = json.loads((tmp_path / "errors.jsonl").read_text())
    assert line == {"step": 7, "error": "WeightWatchError", "message": "NaN in w"}


def test_an_empty_folder_holds_no_readings_and_is_not_touched(tmp_path: Path) -> None:
    history = History(tmp_path / "weightwatch")
    history.rewind(-1)
    assert (list(history.readings()), history.alerts()) == ([], [])
    assert not history.folder.exists()


def test_amending_replaces_the_last_reading(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    history.amend(reading(5, 0.5, checkpoint="checkpoint-5"))
    assert [(r.step, r.checkpoint) for r in history.readings()] == [(0, None), (5, "checkpoint-5")]


def test_amending_a_reading_that_was_never_written_loses_none_before_it(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    history.amend(reading(10, 0.5, checkpoint="checkpoint-10"))
    assert [r.step for r in history.readings()] == [0, 5, 10]


def test_going_on_from_a_checkpoint_sets_later_lines_aside(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5, 10, 15])
    for step in (5, 15):
        history.add_error(step, ValueError("x"))
    later = (history.folder / "readings.jsonl").read_text().splitlines()[3]
    history.rewind(10)
    assert [r.step for r in history.readings()] == [0, 5, 10]
    assert len((history.folder / "errors.jsonl").read_text().splitlines()) == 1
    assert superseded(history)[0] == ("readings.jsonl", later)
    assert [name for name, _ in superseded(history)] == ["readings.jsonl", "errors.jsonl"]


def test_a_fresh_run_sets_everything_aside_and_loses_nothing(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    history.add_alert(ALERT)
    before = [line for name in FILES[:2] for line in (history.folder / name).read_text().splitlines()]
    history.rewind(-1)
    assert (list(history.readings()), history.alerts()) == ([], [])
    assert [line for _, line in superseded(history)] == before


def test_going_on_twice_from_the_same_step_changes_nothing_more(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5, 10])
    history.rewind(5)
    after = superseded(history)
    history.rewind(5)
    assert superseded(history) == after


@pytest.mark.parametrize("tail", ['{"step": 10, "ti', '{"step": NaN}', "[]", '"x"', '{"step": null}', "\x00\x00"])
def test_a_line_that_a_crash_left_unfinished_is_set_aside_when_the_run_goes_on(tail: str, tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    with (history.folder / "readings.jsonl").open("a") as file:
        file.write(tail)
    history.rewind(5)
    assert [r.step for r in history.readings()] == [0, 5]
    assert superseded(history) == [("readings.jsonl", tail)]


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    with (history.folder / "readings.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\xff")
    with pytest.raises(WeightWatchError, match="line 3 is damaged"):
        list(history.readings())
    history.rewind(5)
    assert [r.step for r in history.readings()] == [0, 5]


def test_an_unfinished_line_is_set_aside_by_the_next(tmp_path: Path) -> None:
    for add in (History.add_reading, History.amend):
        history = recorded(tmp_path / add.__name__, [0])
        with (history.folder / "readings.jsonl").open("a") as file:
            file.write('{"step": 5, "ti')
        add(history, reading(5, 0.5))
        assert [r.step for r in history.readings()] == [0, 5]
        assert superseded(history) == [("readings.jsonl", '{"step": 5, "ti')]


def test_an_alert_of_an_earlier_step_that_was_written_later_keeps_none_from_being_superseded(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 10, 20, 30])
    for step in (30, 10):  # at 30 the run is resumed under a new rule, which was true at 10
        history.add_alert(replace(ALERT, step=step))
    history.rewind(20)
    assert [alert.step for alert in history.alerts()] == [10]
    assert [name for name, _ in superseded(history)] == ["readings.jsonl", "alerts.jsonl"]


def test_alerts_of_rules_that_no_longer_apply_are_set_aside_without_the_readings(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    history.set_alerts_aside()
    assert superseded(history) == []
    for step in (5, 10):
        history.add_alert(replace(ALERT, step=step))
    before = (history.folder / "alerts.jsonl").read_text().splitlines()
    history.set_alerts_aside()
    assert history.alerts() == []
    assert [r.step for r in history.readings()] == [0, 5]
    assert superseded(history) == [("alerts.jsonl", line) for line in before]


def test_only_the_readings_after_a_step_are_read(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5, 10, 15])
    file = history.folder / "readings.jsonl"
    file.write_text("damaged\n" + file.read_text())
    assert [r.step for r in history.readings_after(5)] == [10, 15]
    assert history.readings_after(15) == []
    assert [r.step for r in history.newest(2)] == [10, 15]


@pytest.mark.parametrize("line", ["{", '{"step": 1}', "[]", '{"step": 1, "colour": "red", "directions": {}}'])
def test_a_damaged_line_is_named_with_its_file_and_number(line: str, tmp_path: Path) -> None:
    history = recorded(tmp_path, [0])
    with (history.folder / "readings.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(WeightWatchError, match=r"readings\.jsonl, line 2 is damaged .* Move the line elsewhere"):
        list(history.readings())


def test_a_process_killed_while_it_writes_leaves_all_finished_lines(tmp_path: Path) -> None:
    history = History(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for told in process.stdout:
        if int(told) == 20:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    written = (tmp_path / "readings.jsonl").read_text()
    history.rewind(20)
    assert [r.step for r in history.readings()] == list(range(21))
    kept = (tmp_path / "readings.jsonl").read_text()
    assert written == kept + "\n".join(line for _, line in superseded(history)) + (
        "\n" if len(written) > len(kept) else ""
    )


def test_the_last_reading_is_the_newest_that_is_whole(tmp_path: Path) -> None:
    assert History(tmp_path / "weightwatch").last_reading() is None
    history = recorded(tmp_path, [0, 5])
    assert history.last_reading() == reading(5, 0.5, layers=[0.1, 0.2], modules={"q_proj": 0.3})


@pytest.mark.parametrize("length", [3, 1 << 16, 200_000])
def test_lines_longer_than_what_is_read_at_a_time_are_found_from_the_end(length: int, tmp_path: Path) -> None:
    history = History(tmp_path)
    for step in range(4):
        history.add_error(step, ValueError("x" * length))
    history.rewind(1)
    lines = (tmp_path / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1]
    assert [json.loads(line)["step"] for _, line in superseded(history)] == [2, 3]


def test_amending_leaves_the_bytes_before_it_alone_and_may_shorten(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    path = history.folder / "readings.jsonl"
    before = path.read_bytes()
    history.amend(reading(5, 0.5, layers=[0.1, 0.2], modules={"q_proj": 0.3}, checkpoint="checkpoint-5"))
    assert path.read_bytes().startswith(before[: before.rindex(b'null, "left_out')])
    history.amend(reading(5, 0.5, layers=[0.1, 0.2], modules={"q_proj": 0.3}))
    assert path.read_bytes() == before


STATE = State(step=5, checkpoint="checkpoint-5", key="k", states={"a": RuleState(1, 0, 5)}, clean=[], peaks={})


def test_states_go_with_the_readings_when_the_run_goes_back(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5, 10])
    for step in (5, 10):
        history.add_state(STATE.model_copy(update={"step": step}))
    history.rewind(5)
    assert history.states() == [STATE]
    assert [name for name, _ in superseded(history)] == ["readings.jsonl"]  # states follow from the readings
    history.forget_states()
    assert history.states() == []


@pytest.mark.parametrize(
    "change",
    [
        {"step": "5"},
        {"states": {"a": {"true_for": "1"}}},
        {"states": {"a": None}},
        {"clean": "a"},
        {"peaks": {"evil": ["0.1", 5]}},
        {"peaks": {"evil": [float("nan"), 5]}},
        {"checkpoint": None},
        {"colour": "red"},
    ],
)
def test_states_with_a_damaged_line_are_not_used(change: dict[str, object], tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5])
    history.add_state(STATE)
    history.append("states.jsonl", {**STATE.model_dump(), **change})
    assert history.states() == []


def test_a_reading_that_is_there_twice_or_out_of_order_is_named(tmp_path: Path) -> None:
    for number, steps in enumerate(([0, 5, 5], [0, 5, 3])):
        history = recorded(tmp_path / str(number), steps)
        with pytest.raises(WeightWatchError, match=rf"line 3 is damaged \(step {steps[2]} comes after step 5\)"):
            list(history.readings())


def test_an_alert_that_is_there_twice_is_named(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add_alert(ALERT)
    history.add_alert(replace(ALERT, state="resolved"))
    assert len(history.alerts()) == 2
    history.add_alert(ALERT)
    with pytest.raises(WeightWatchError, match=r"alerts\.jsonl, line 3 is damaged \(it repeats an earlier line\)"):
        history.alerts()


def test_a_record_knows_which_steps_it_has(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5, 10])
    assert [step for step in range(12) if history.has(step)] == [0, 5, 10]
    assert not History(tmp_path / "nowhere").has(0)


def test_lines_after_the_end_are_not_read(tmp_path: Path) -> None:
    history = recorded(tmp_path, [0, 5, 10])
    for step in (5, 10):
        history.add_alert(replace(ALERT, step=step))
        history.add_state(STATE.model_copy(update={"step": step}))
    history.end = 5
    assert [r.step for r in history.readings()] == [0, 5]
    assert [r.step for r in history.readings_after(0)] == [5]
    assert [r.step for r in history.newest(9)] == [0, 5]
    assert history.last_reading() == list(history.readings())[-1]
    assert [alert.step for alert in history.alerts()] == [5]
    assert history.states() == [STATE]


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_none_of_it(tmp_path: Path) -> None:
    script = """
import resource, signal, sys
from tests.support.runs import reading
from weightwatch.record.history import History
history = History(sys.argv[1])
history.add_reading(reading(0, 0.1))
size = (history.folder / "readings.jsonl").stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, -1))
try:
    history.add_reading(reading(5, 0.1))
except OSError:
    assert (history.folder / "readings.jsonl").stat().st_size == size
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 7, done.stderr.decode()
    assert [r.step for r in History(tmp_path).readings()] == [0]
