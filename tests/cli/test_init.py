"""``weightwatch init`` as a user calls it."""

from pathlib import Path

from typer.testing import CliRunner

from tests.support.commands import call, refused
from weightwatch import Config, Direction
from weightwatch.cli.main import app
from weightwatch.organism import BASE

FILES = ["train.py", "weightwatch.schema.json", "weightwatch.yaml"]


def test_the_files_are_written_and_pass_the_check(tmp_path: Path) -> None:
    result = call("init", tmp_path / "new", "--model", "organism", "-d", "evil", "--control", "style", "--every", 25)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == FILES
    assert Config.load(tmp_path / "new" / "weightwatch.yaml").every == 25
    assert str(BASE) in (tmp_path / "new" / "train.py").read_text()
    assert call("check", tmp_path / "new" / "weightwatch.yaml", "--model", "organism").exit_code == 0
    assert "Next: weightwatch check" in result.output


def test_the_bank_beside_a_direction_is_named_in_the_settings(tmp_path: Path) -> None:
    evil = Direction.load("evil").save(tmp_path / "evil")
    bank = [Direction.load("shuffled").with_card(name=f"s{n}").save(evil / "controls" / f"s{n}") for n in range(5)]
    assert call("init", tmp_path, "--model", "organism", "-d", evil).exit_code == 0
    made = Config.load(tmp_path / "weightwatch.yaml")
    assert made.controls == [str(path) for path in bank]
    assert [(rule.metric, rule.above) for rule in made.rules] == [("over_controls", 0.0)]
    assert call("check", tmp_path / "weightwatch.yaml", "--model", "organism").exit_code == 0


def test_what_is_not_said_is_asked(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["init", str(tmp_path)], input="organism\nevil sycophancy\n")
    assert result.exit_code == 0, result.output
    assert Config.load(tmp_path / "weightwatch.yaml").directions == ["evil", "sycophancy"]


def test_files_that_are_there_stay_unless_they_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("mine")
    arguments = ["init", tmp_path, "--model", "organism", "-d", "evil"]
    refused("train.py exists. Pass --force", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
    assert call(*arguments, "--force").exit_code == 0
    assert (tmp_path / "train.py").read_text() != "mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused("can't be written", "init", tmp_path / "file" / "new", "--model", "organism", "-d", "evil")


def test_a_direction_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused("Unknown direction 'evill'", "init", tmp_path, "--model", "organism", "-d", "evill")
    assert list(tmp_path.iterdir()) == []
