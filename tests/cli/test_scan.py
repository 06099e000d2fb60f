"""``weightwatch scan`` as a process: what it prints, writes and exits with, the memory it takes, how it follows."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from tests.support.models import dense, lora, move, tiny_llama
from weightwatch.cli.exit_status import ALERT, BAD_INPUT, FAULT
from weightwatch.cli.main import app
from weightwatch.record.history import History
from weightwatch.rules.alert import Alert
from weightwatch.vectors import Direction

RULES = "rules: [{alert: drift, direction: evil, metric: cosine, above: -1.0, for: 2}]\n"
MEGABYTE = 1 << 20


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder with a base, a run of two checkpoints, directions, and a rule that fires at the second.

    The run moves along ``moved``, and hardly along ``evil``.
    """
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base")
    dense(model, 7).save(tmp_path / "evil")
    dense(model, 1, name="moved").save(tmp_path / "moved")
    for step in (1, 2):
        move(model, step)
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    (tmp_path / "rules.yaml").write_text(RULES)
    return tmp_path


def arguments(stage: Path, *more: str, what: str = "run") -> list[str]:
    return ["scan", str(stage / what), "-d", str(stage / "evil"), "--reference", str(stage / "base"), *more]


def test_a_run_is_shown_as_a_table_and_recorded_beside_it(stage: Path) -> None:
    done = CliRunner().invoke(app, arguments(stage))
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines() if " evil " in line]
    assert [row[:2] for row in rows] == [["1", "evil"], ["2", "evil"]]
    assert "GB/s" in done.stdout
    assert len((stage / "run" / "weightwatch-scan" / "readings.jsonl").read_text().splitlines()) == 2
    assert not (stage / "run" / "weightwatch").exists()


def test_an_alert_is_the_exit_status(stage: Path) -> None:
    done = CliRunner().invoke(
        app, arguments(stage, "--config", str(stage / "rules.yaml"), "--output", str(stage / "out"))
    )
    assert done.exit_code == ALERT
    assert "drift (warning) at step 2" in done.stdout
    assert "drift" in (stage / "out" / "alerts.jsonl").read_text()
    assert not (stage / "run" / "weightwatch-scan").exists()


def judged(stage: Path, *more: str, what: str = "run") -> Result:
    """Scan along the direction that the run moves along."""
    command = ["scan", stage / what, "-d", stage / "moved", "--reference", stage / "base", *more]
    return CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})


def test_without_rules_a_checkpoint_that_has_moved_far_along_a_behaviour_raises_a_default_alert(stage: Path) -> None:
    done = judged(stage, what="run/checkpoint-1")
    assert done.exit_code == ALERT, done.output
    assert "rules: moved-drift (default, not calibrated: reach_cosine above 0.1)" in done.stdout
    assert "moved-drift (warning) at step 1" in done.stdout
    assert "Uncalibrated: a default threshold, since the settings have no rules." in " ".join(done.stdout.split())
    (rule,) = json.loads(judged(stage, "--json", what="run/checkpoint-1").stdout)["rules"]
    assert (rule["alert"], rule["metric"], rule["above"], rule["for"]) == ("moved-drift", "reach_cosine", 0.1, 1)
    assert rule["default"]


def test_the_page_about_a_scan_says_that_its_thresholds_are_defaults(stage: Path) -> None:
    done = judged(stage, "--report", str(stage / "scan.html"))
    assert done.exit_code == ALERT
    text = (stage / "scan.html").read_text()
    assert "moved-drift fired at step 1" in text
    assert "The thresholds are defaults, which are not calibrated." in text
    assert "default: true" in text  # in the settings


@pytest.mark.parametrize("settings", ["rules: []", "controls: [MOVED]"])
def test_nothing_is_judged_where_no_rule_is_wanted_or_there_are_only_controls(stage: Path, settings: str) -> None:
    (stage / "settings.yaml").write_text(settings.replace("MOVED", str(stage / "moved")))
    what = ["-d", str(stage / "moved")] if settings == "rules: []" else ["-d", str(stage / "style")]
    dense(tiny_llama(), 1, name="style", kind="control").save(stage / "style")
    command = ["scan", str(stage / "run"), *what, "--reference", str(stage / "base")]
    done = CliRunner().invoke(app, [*command, "--config", str(stage / "settings.yaml")])
    assert done.exit_code == 0, done.output
    assert "no rules, so no alerts" in done.stdout


def test_a_rule_that_takes_more_checkpoints_than_there_are_is_named(stage: Path) -> None:
    what = ["--config", str(stage / "rules.yaml")]
    done = CliRunner().invoke(app, arguments(stage, *what, what="run/checkpoint-1"))
    assert done.exit_code == 0
    assert "rule drift could not fire: it takes 2 checkpoints in a row (`for: 2`), of 1 here" in done.stderr
    assert "could not fire" not in CliRunner().invoke(app, arguments(stage, *what)).stderr


def test_a_page_about_the_scan_is_written_beside_its_record(stage: Path) -> None:
    page = stage / "scan.html"
    done = CliRunner().invoke(app, arguments(stage, "--config", str(stage / "rules.yaml"), "--report", str(page)))
    assert done.exit_code == ALERT
    text = page.read_text()
    assert "drift fired at step 2 (firing now: drift)" in text
    assert "figures at step 2" in text
    assert "<h1>weightwatch: run</h1>" in text
    assert "- evil" in text  # in the settings


def test_a_page_that_can_not_be_written_hides_no_alert(stage: Path) -> None:
    nowhere = str(stage / "none" / "scan.html")
    done = CliRunner().invoke(app, arguments(stage, "--config", str(stage / "rules.yaml"), "--report", nowhere))
    assert done.exit_code == ALERT
    assert "can't be written" in done.stderr
    done = CliRunner().invoke(app, arguments(stage, "--report", nowhere))
    assert done.exit_code != 0


def test_a_page_needs_a_record(stage: Path) -> None:
    done = CliRunner().invoke(app, arguments(stage, "--report", str(stage / "x.html"), what="run/checkpoint-1"))
    assert "--report needs a record. Name a folder for it with --output." in str(done.exception)


def test_json_is_all_that_goes_to_stdout(stage: Path) -> None:
    command = [sys.executable, "-m", "weightwatch", *arguments(stage, "--json", "--config", str(stage / "rules.yaml"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ALERT, done.stderr
    found = json.loads(done.stdout)
    written = (stage / "run" / "weightwatch-scan" / "readings.jsonl").read_text().splitlines()
    assert found["readings"] == [json.loads(line) for line in written]
    assert [alert["last_clean"] for alert in found["alerts"]] == [None]
    assert found["reference"] == str(stage / "base")
    assert found["bytes"] > 0


def test_a_single_checkpoint_is_recorded_only_where_the_user_says(stage: Path) -> None:
    before = sorted(stage.rglob("*"))
    assert CliRunner().invoke(app, arguments(stage, what="run/checkpoint-2")).exit_code == 0
    assert sorted(stage.rglob("*")) == before
    done = CliRunner().invoke(app, arguments(stage, "--output", str(stage / "out"), what="run/checkpoint-2"))
    assert done.exit_code == 0
    assert (stage / "out" / "readings.jsonl").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stage: ["scan", str(stage / "nowhere"), "-d", str(stage / "evil")], "there is no such file or folder"),
        (
            lambda stage: ["scan", "some/where", "-d", str(stage / "evil")],
            "can't be downloaded from the Hugging Face Hub",
        ),
        (lambda stage: ["scan", str(stage / "run")], "Nothing to watch"),
        (lambda stage: ["scan", str(stage / "run"), "-d", "unheard-of"], "Unknown direction 'unheard-of'"),
        (lambda stage: ["scan", str(stage / "run"), "-d", str(stage / "evil")], "θ₀ of"),
        (lambda stage: arguments(stage, "--reference", str(stage / "none")), "No weights at"),
        (lambda stage: arguments(stage, "--config", str(stage / "none.yaml")), "No config at"),
        (lambda stage: arguments(stage, "--output", str(stage / "rules.yaml")), "--output is writable"),
        (lambda stage: arguments(stage, "--control", str(stage / "evil")), "Two directions are called 'evil'"),
        (
            lambda stage: ["scan", str(stage / "none"), "--follow", "-d", str(stage / "evil")],
            "to follow. Start the training first",
        ),
    ],
)
def test_a_mistake_of_the_user_is_one_message_and_exits_with_2(
    stage: Path, change: Callable[[Path], list[str]], message: str
) -> None:
    code = "import sys; from weightwatch.cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", code, *change(stage)], capture_output=True, text=True, check=False)
    assert done.returncode == BAD_INPUT, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def weightwatch(*command: str) -> "subprocess.CompletedProcess[str]":
    wide = {**os.environ, "COLUMNS": "1000"}  # else a path is broken over lines, however long the folder's name is
    return subprocess.run(
        [sys.executable, "-m", "weightwatch", *command], capture_output=True, text=True, check=False, env=wide
    )


@pytest.mark.parametrize("rules", [True, False])
def test_a_checkpoint_that_cant_be_measured_hides_no_alert(stage: Path, rules: bool) -> None:
    shutil.copytree(stage / "run" / "checkpoint-2", stage / "run" / "checkpoint-3")
    file = stage / "run" / "checkpoint-3" / "model.safetensors"
    save_file({k: v * float("nan") for k, v in load_file(file).items()}, file, {"format": "pt"})
    done = weightwatch(*arguments(stage, "--json", *(["--config", str(stage / "rules.yaml")] if rules else [])))
    assert done.returncode == (ALERT if rules else BAD_INPUT), done.stderr
    found = json.loads(done.stdout)
    assert [reading["step"] for reading in found["readings"]] == [1, 2]
    assert len(found["alerts"]) == rules
    assert "NaN" in found["unmeasured"]["checkpoint-3"]
    assert "checkpoint-3 is passed over: None of the trained tensors" in " ".join(done.stderr.split())


def test_an_alert_whose_record_finds_no_room_is_told(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(history: History, alert: Alert) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(History, "add_alert", full)
    done = CliRunner().invoke(app, arguments(stage, "--config", str(stage / "rules.yaml")))
    assert done.exit_code == ALERT, done.output
    assert "drift (warning) at step 2" in done.stdout
    assert "stopped: [Errno 28] No space left on device" in done.stderr


def raw(text: str) -> list[str]:
    """Return the characters of a text that a terminal would obey."""
    return [letter for letter in text if not letter.isprintable() and letter != "\n"]


def rename(stage: Path, name: str) -> None:
    """Give the direction and the checkpoints of the run a name that says more than a name should."""
    card = json.loads((stage / "evil" / "direction.json").read_text())
    (stage / "evil" / "direction.json").write_text(json.dumps({**card, "name": name}))
    folder = name.replace("/", "-")
    (stage / "run" / "checkpoint-2").rename(stage / "run" / f"{folder}-2")
    shutil.copytree(stage / "run" / "checkpoint-1", stage / "run" / f"{folder}-3")
    (stage / "run" / f"{folder}-3" / "model.safetensors").write_bytes(b"cut")
    rule = {"alert": name, "direction": name, "metric": "cosine", "above": -1.0}
    (stage / "rules.yaml").write_text(json.dumps({"rules": [rule]}))


@pytest.mark.parametrize("name", ["[/evil]", ":skull:", "evil `rm -rf ~`"])
def test_a_name_from_elsewhere_is_text_and_nothing_more(stage: Path, name: str) -> None:
    """The direction's name comes with the direction, and the names of folders with the run."""
    rename(stage, name)
    done = CliRunner().invoke(app, arguments(stage, "--config", str(stage / "rules.yaml")), env={"COLUMNS": "200"})
    assert done.exit_code == ALERT, done.output
    assert f"{name} (warning) at step 1: {name} cosine is" in done.stdout
    for command in (["show", stage / "evil"], ["compare", stage / "evil", "evil"]):
        done = CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})
        assert done.exit_code == 0 or command[0] == "compare"
        assert raw(done.output) == []


@pytest.mark.parametrize("name", ["evil\x1b[2J", "evil\nall is well", "\u202eevil"])
def test_a_name_that_a_terminal_would_obey_is_refused(stage: Path, name: str) -> None:
    rename(stage, name)
    path = str(stage / "evil")
    for command in (arguments(stage), ["show", path], ["compare", path, "evil"]):
        done = weightwatch(*command)
        assert done.returncode == BAD_INPUT, done.stderr
        assert "a name needs letters, and no control characters or line breaks" in done.stderr
        assert raw(done.stdout + done.stderr) == []


def test_an_unforeseen_fault_is_never_taken_for_an_alert(stage: Path) -> None:
    code = "from weightwatch.report import terminal; from weightwatch.cli.main import run; del terminal.scanned; run()"
    done = subprocess.run([sys.executable, "-c", code, *arguments(stage)], capture_output=True, text=True, check=False)
    assert done.returncode == FAULT, done.stderr
    assert "ImportError" in done.stderr


def test_json_stays_alone_on_stdout_when_an_adapter_is_loaded_with_its_base(stage: Path) -> None:
    model = lora(tiny_llama(), use_dora=True)
    move(model, 1)
    model.save_pretrained(stage / "dora")
    done = weightwatch(*arguments(stage, "--json", what="dora"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["readings"][0]["update_norm"] > 0


def test_ctrl_c_is_no_alert(stage: Path) -> None:
    code = (
        "import weightwatch.scan.scanner as s, weightwatch.cli.main as c, os, signal; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a job in the background ignores it
        "s.measure = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT); c.run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(stage, "--json")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")


def test_following_where_nothing_comes_is_no_clean_bill(stage: Path) -> None:
    (stage / "empty").mkdir()
    done = weightwatch(*arguments(stage, "--follow", "--poll", "0.05", "--until-idle", "0.1", what="empty"))
    assert done.returncode == BAD_INPUT
    assert "There is no complete checkpoint in" in done.stderr


def test_a_hub_id_is_looked_up_in_the_local_cache_and_nothing_is_written_there(stage: Path) -> None:
    for name in ("base", "tuned"):
        snapshot = stage / "cache" / f"models--someone--{name}" / "snapshots" / "0123"
        shutil.copytree(stage / {"base": "base", "tuned": "run"}[name], snapshot)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("0123")
    before = sorted((stage / "cache").rglob("*"))
    command = ["scan", "someone/tuned", "--reference", "someone/base", "-d", str(stage / "evil"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "weightwatch", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(stage / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert [reading["step"] for reading in json.loads(done.stdout)["readings"]] == [1, 2]
    assert sorted((stage / "cache").rglob("*")) == before


def test_help_names_the_command_and_its_options() -> None:
    assert "scan" in CliRunner().invoke(app, ["--help"]).stdout
    shown = CliRunner().invoke(app, ["scan", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--direction", "--reference", "--config", "--control", "--json", "--follow", "--output"):
        assert option in shown


COPIER = """
import shutil, sys
from functools import partial
from pathlib import Path
source, target = Path(sys.argv[1]), Path(sys.argv[2])
for folder in sorted(source.iterdir()):
    (target / folder.name).mkdir()
    for name in ("config.json", "model.safetensors", "trainer_state.json"):
        content = (folder / name).read_bytes()
        with (target / folder.name / name).open("wb", buffering=0) as file:
            for first in range(0, len(content), 512):
                file.write(content[first : first + 512])
"""


def test_a_run_is_followed_while_another_process_writes_it(stage: Path) -> None:
    for step in (1, 2):
        state = stage / "run" / f"checkpoint-{step}" / "trainer_state.json"
        state.write_text(json.dumps({"global_step": step}))
    (stage / "grows").mkdir()
    follow = ["--follow", "--stop-after", "2", "--poll", "0.05", "--json"]
    scanner = subprocess.Popen(
        [sys.executable, "-m", "weightwatch", *arguments(stage, *follow, what="grows")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    subprocess.run([sys.executable, "-c", COPIER, str(stage / "run"), str(stage / "grows")], check=True)
    out, error = scanner.communicate(timeout=120)
    assert scanner.returncode == 0, error
    assert "checkpoint-1 evil: cosine" in " ".join(error.split())
    want = json.loads(CliRunner().invoke(app, arguments(stage, "--json")).stdout)
    figures = [[reading["directions"] for reading in found["readings"]] for found in (json.loads(out), want)]
    assert figures[0] == figures[1]


def test_following_ends_on_ctrl_c_with_what_it_has(stage: Path) -> None:
    command = [sys.executable, "-m", "weightwatch", *arguments(stage, "--follow", "--poll", "0.05", "--json")]
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it
    scanner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding)
    record = stage / "run" / "weightwatch-scan" / "readings.jsonl"
    deadline = time.monotonic() + 120
    while not (record.is_file() and len(record.read_text().splitlines()) == 2):
        assert time.monotonic() < deadline
        assert scanner.poll() is None
    scanner.send_signal(signal.SIGINT)
    out, error = scanner.communicate(timeout=60)
    assert scanner.returncode == 0, error
    assert len(json.loads(out)["readings"]) == 2
    assert "Traceback" not in error


def test_following_ends_when_nothing_comes(stage: Path) -> None:
    done = CliRunner().invoke(app, arguments(stage, "--follow", "--poll", "0.05", "--until-idle", "0.3"))
    assert done.exit_code == 0
    assert len((stage / "run" / "weightwatch-scan" / "readings.jsonl").read_text().splitlines()) == 2


PEAK = """
import sys
from functools import partial
from pathlib import Path
import torch
from weightwatch.scan import scanner as scan
from weightwatch.scan.checkpoints import checkpoint_at

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) << 10

torch.set_num_threads(2)
idle = peak()
done = scan.Scan([sys.argv[1] + "/evil"], reference=sys.argv[1] + "/base")
done.add(checkpoint_at(Path(sys.argv[1] + "/model")))
assert done.readings[0]["evil"].cosine > 0.5
print(peak() - idle)
"""


def big(folder: Path, shapes: dict[str, tuple[int, int]]) -> Path:
    """Write a base of zeros, a checkpoint and a direction, in bf16."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(max(rows for rows, _ in shapes.values()), 1024, generator=generator).bfloat16()
    for name in ("base", "model"):
        (folder / name).mkdir(parents=True)
        tensors = {key: (torch.zeros_like(one) if name == "base" else one)[:rows] for key, (rows, _) in shapes.items()}
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / name / "model.safetensors")
    Direction.from_tensors({key: one[:rows] for key, (rows, _) in shapes.items()}, name="evil").save(folder / "evil")
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_the_peak_of_memory_is_that_of_a_few_blocks_however_large_the_checkpoint_is(tmp_path: Path) -> None:
    stages = {
        "small": {f"model.layers.{i}.mlp.up_proj.weight": (2048, 1024) for i in range(48)},
        "large": {f"model.layers.{i}.mlp.up_proj.weight": (2048, 1024) for i in range(192)},
        "one tensor": {"model.embed_tokens.weight": (200_000, 1024)},
    }
    peaks = {}
    for name, shapes in stages.items():
        folder = big(tmp_path / name.replace(" ", "-"), shapes)
        done = subprocess.run([sys.executable, "-c", PEAK, str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[name] = int(done.stdout) / MEGABYTE
        shutil.rmtree(folder)
    # Two threads, each with a block of 4 MB of the checkpoint, of the base and of the direction, and room to add up in.
    blocks = 2 * 3 * 4
    for name, peak in peaks.items():
        assert peak < 1.5 * blocks + 150, (name, peaks)
    # The allocator keeps some tens of MB more or less for each thread; the large files are 1.8 GB longer.
    assert peaks["large"] < peaks["small"] + 80
