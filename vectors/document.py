"""A YAML file that a pydantic model describes, and errors that say where in it something is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from weightwatch.vectors.errors import WeightWatchError

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Strict(BaseModel):
    """A part of a document: frozen, without unknown keys, and no value is bent into another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def parse(path: Path, what: str) -> tuple[Any, yaml.Node | None]:
    """Return what a YAML file says, and its nodes, which know their lines.

    Args:
        path: The file.
        what: What it should be, for the message.

    Raises:
        WeightWatchError: It can't be read, or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except OSError as error:
        raise WeightWatchError(f"No {what} at {path} ({error.strerror}). Give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise WeightWatchError(f"{path}{where} is not YAML: {getattr(error, 'problem', error)}.") from error


def line(node: yaml.Node, keys: Sequence[int | str]) -> int:
    """Return the line of a key, or where it is missing, of what it is missing from."""
    number = node.start_mark.line
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pairs = {name.value: (name, value) for name, value in node.value}
            if key not in pairs:
                break
            name, node = pairs[key]
            number = name.start_mark.line
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int):
            node = node.value[key]
            number = node.start_mark.line
    return number + 1


@dataclass(frozen=True)
class Document:
    """What a YAML file says.

    Attributes:
        path: The file.
        data: Its keys and values.
        nodes: The same as YAML's nodes, which know their lines.
    """

    path: Path
    data: dict[str, Any]
    nodes: yaml.Node

    @classmethod
    def read(cls, path: Path, what: str) -> "Document":
        """Read a file.

        Args:
            path: The file.
            what: What it should be, for the message.

        Raises:
            WeightWatchError: It can't be read, is no YAML, or holds no keys.
        """
        data, nodes = parse(path, what)
        if not isinstance(data, dict) or nodes is None:
            raise WeightWatchError(f"{path}: expected keys and values, found {data!r}.")
        return cls(path, data, nodes)

    def validate(self, model: type[Model], values: Mapping[str, Any]) -> Model:
        """Make a model of values that stand in this document, or were put beside them.

        Raises:
            WeightWatchError: A value is not allowed; the message names the file, the line, the path of the key, the
                value and what is allowed.
        """
        try:
            return model.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            keys = _keys(self.data, first["loc"])
            told = _explain(model, keys, first)
            raise WeightWatchError(f"{self.path}, line {line(self.nodes, keys)}: {told}") from None


def _keys(data: Any, location: Sequence[int | str]) -> list[int | str]:
    """Return a location without the tags that pydantic puts into it where a union chose one of its models."""
    keys: list[int | str] = []
    for part in location:
        if isinstance(data, Mapping) and part not in data and part in data.values():
            continue
        keys.append(part)
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            data = None
    return keys


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside a type such as ``list[Question]`` or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]


def _known(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the keys that are known where the last of a location stands. Tags of unions choose between models."""
    models = [model]
    for part in location[:-1]:
        fields = [one.model_fields[part].annotation for one in models if part in one.model_fields]
        if fields:
            models = [found for annotation in fields for found in _models(annotation)]
        elif isinstance(part, str):
            models = [one for one in models if any(part in get_args(f.annotation) for f in one.model_fields.values())]
    return [name for one in models for name in one.model_fields]


# Where pydantic's own words don't finish the sentence "it should be …".
_WANTED = {
    "string_type": "a text; put it in quotes",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores",
    "too_short": "a list of at least one",
    "list_type": "a list",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
}


def _explain(model: type[BaseModel], keys: Sequence[int | str], first: Any) -> str:
    """Say what is wrong: the key's path, the value, and what is allowed."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
    if first["type"] == "extra_forbidden":
        return f"{path} is not a known key; known are {', '.join(_known(model, first['loc']))}."
    if first["type"] == "missing":
        return f"{path} is missing; give it a value."
    if first["type"] == "union_tag_not_found":
        return f"{path} lacks its key {first['ctx']['discriminator']}."
    if first["type"] == "union_tag_invalid":
        about = first["ctx"]
        key = about["discriminator"].strip("'")
        return f"{path}.{key}: {about['tag']!r} is not allowed; it should be one of {about['expected_tags']}."
    if first["type"] == "value_error":
        return f"{path}: {first['msg'].removeprefix('Value error, ')}.".removeprefix(": ")
    wanted = _WANTED.get(first["type"], first["msg"].removeprefix("Input should be "))
    return f"{path}: {first['input']!r} is not allowed; it should be {wanted}."
