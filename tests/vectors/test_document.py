"""One way to read YAML and to say what is wrong in it, on models of every shape that settings and recipes have."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.document import Document, Strict, Text


class Circle(Strict):
    by: Literal["circle"]
    radius: float


class Square(Strict):
    by: Literal["square"]
    side: float


class Rows(Strict):
    rows: list[int] = Field(min_length=1)


class Columns(Strict):
    columns: list[int]


class Rule(Strict):
    alert: Text
    for_: int = Field(1, alias="for", ge=1)


class Whole(Strict):
    name: Text = "none"
    shape: Annotated[Circle | Square, Field(discriminator="by")] | None = None
    part: Literal["all"] | Rows | Columns = "all"
    rules: list[Rule] = Field(default_factory=list)
    labels: dict[str, Rule] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _no_bad_name(self) -> "Whole":
        if self.name == "bad":
            raise ValueError("a whole can't be bad")
        return self


def wrong(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(WeightWatchError) as caught:
        Document.read(path, Whole, "whole").validate(wanted={"part": "'all', rows or columns"})
    assert str(caught.value).startswith(f"{path}")
    return str(caught.value).removeprefix(f"{path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nnmae: y\n", ", line 2: nmae is not a known key; known are name, shape, part, rules, labels."),
        ("\nname: 3\n", ", line 2: name: 3 is not allowed; it should be a text; put it in quotes."),
        ("name: bad\n", ", line 1: a whole can't be bad."),
        ("rules:\n- alert: a\n  fro: 2\n", ", line 3: rules[0].fro is not a known key; known are alert, for."),
        ("rules:\n- alert: a\n  for: 0\n", ", line 3: rules[0].for: 0 is not allowed; it should be greater than or e"),
        ("rules:\n- {alert: a}\n- for: 2\n", ", line 3: rules[1].alert is missing; give it a value."),
        ("rules:\n- 3\n", ", line 2: rules[0]: 3 is not allowed; it should be keys such as `alert:`."),
        ("labels:\n  x:\n    alrt: y\n", ", line 2: labels.x.alert is missing"),
        ("labels:\n  x: {alert: z,\n    alrt: y}\n", ", line 3: labels.x.alrt is not a known key; known are alert, fo"),
        ("shape: {side: 3}\n", ", line 1: shape lacks its key 'by'."),
        ("shape:\n  by: line\n", ", line 1: shape.by: 'line' is not allowed; it should be one of 'circle', 'square'."),
        ("shape:\n  by: circle\n  side: 3\n", "shape.radius is missing; give it a value."),
        (
            "shape:\n  by: circle\n  radius: 1.0\n  side: 3\n",
            ", line 4: shape.side is not a known key; known are by, radius.",
        ),
        ("part: some\n", ", line 1: part: 'some' is not allowed; it should be 'all', rows or columns."),
        ("part: {row: [1]}\n", "it should be 'all', rows or columns."),
        ("part:\n  rows: []\n", ", line 2: part.rows: [] is not allowed; it should be a list of at least one."),
        (
            "part:\n  columns:\n  - 1\n  - x\n",
            ", line 4: part.columns[1]: 'x' is not allowed; it should be a valid integer.",
        ),
        ("7: x\n", ", line 1: [7]: 7 is not allowed; it should be a word."),
        ("- x\n", ": expected keys such as `name:`, found ['x']."),
        ("name: [\n", ", line 2 is not YAML: "),
    ],
)
def test_an_error_names_the_line_the_key_the_value_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    assert message in wrong(tmp_path / "whole.yaml", text)


@pytest.mark.parametrize("data", [{"nmae": "y"}, {"rules": [{"alert": 3}]}])
def test_a_mapping_without_a_file_has_the_same_errors_without_a_line(tmp_path: Path, data: dict[str, Any]) -> None:
    with pytest.raises(WeightWatchError) as caught:
        Document(Whole, data, "settings").validate()
    path = tmp_path / "whole.yaml"
    message = wrong(path, str(data).replace("'", ""))
    assert message.replace(", line 1", "") == str(caught.value).removeprefix("settings")


def test_nothing_is_an_empty_mapping(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert Document.read(tmp_path / "empty.yaml", Whole, "whole").validate() == Whole()
    assert Document(Whole, None, "settings").validate() == Whole()


def test_values_can_be_put_beside_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text("name: x\n")
    document = Document.read(tmp_path / "whole.yaml", Whole, "whole")
    assert document.data == {"name": "x"}
    assert document.validate({"part": Rows(rows=[1]), **document.data}) == Whole(name="x", part=Rows(rows=[1]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"No whole at .*none\.yaml \(No such file"):
        Document.read(tmp_path / "none.yaml", Whole, "whole")


def test_a_mapping_inside_is_a_document_with_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "whole.yaml"
    path.write_text("name: x\nshape:\n  by: circle\n  radius: wide\n")
    document = Document.read(path, Whole, "whole")
    with pytest.raises(WeightWatchError, match=r"whole\.yaml, line 4: radius: 'wide' is not allowed"):
        document.inside("shape", Circle).validate()
    with pytest.raises(WeightWatchError, match=r"expected keys such as `by:`, found 'x'"):
        document.inside("name", Circle)
    assert (
        Document(Whole, {"shape": {"by": "circle", "radius": 1.0}}, "whole").inside("shape", Circle).validate().radius
        == 1
    )
