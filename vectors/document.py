"""YAML documents that pydantic models describe, with errors that name line, key, value and what is allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from weightwatch.vectors import yaml_text
from weightwatch.vectors.errors import WeightWatchError

_SHOWN = 200  # characters of a value in a message
_MESSAGE = 1000  # characters of a message: a validator's may quote a value, too

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Strict(BaseModel):
    """Base of the models: frozen, unknown keys are errors, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


Model = TypeVar("Model", bound=BaseModel)
Inner = TypeVar("Inner", bound=BaseModel)


class Document(Generic[Model]):
    """A mapping that a pydantic model describes, with the lines of the YAML file it was read from.

    Args:
        model: The model.
        data: The mapping; None is an empty one.
        title: What error messages call the document.
        nodes: The YAML nodes of ``data``. Default: messages name no line.

    Raises:
        WeightWatchError: ``data`` is not a mapping.

    Example:
        >>> from weightwatch.vectors.document import Document, Strict
        >>> class Settings(Strict):
        ...     every: int = 50
        >>> Document(Settings, {"every": 10}, "settings").validate()
        Settings(every=10)
        >>> Document(Settings, {"evry": 10}, "settings").validate()
        Traceback (most recent call last):
        weightwatch.vectors.errors.WeightWatchError: settings: evry is not a known key; known are every.
    """

    def __init__(self, model: type[Model], data: Any, title: str, nodes: yaml.Node | None = None) -> None:
        if data is not None and not isinstance(data, Mapping):
            raise WeightWatchError(f"{title}: expected {_keys_such_as(model)}, found {_shown(data)}.")
        self.data: dict[str, Any] = dict(data or {})
        self._model, self._title, self._nodes = model, title, nodes

    @classmethod
    def read(cls, path: Path, model: type[Model], what: str) -> "Document[Model]":
        """Read a YAML file.

        Args:
            path: The file.
            model: The model that describes it.
            what: What the file should be, for messages.

        Raises:
            WeightWatchError: The file can't be read, is not YAML, or is not a mapping.
        """
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(yaml_text.MAX_SIZE + 1)
        except OSError as error:
            raise WeightWatchError(f"No {what} at {path} ({error.strerror}). Give the path of a YAML file.") from error
        except UnicodeDecodeError as error:
            raise WeightWatchError(f"{path} is not YAML: {error}.") from error
        data, nodes = yaml_text.load(text, str(path))
        return cls(model, data, str(path), nodes)

    def validate(self, values: Mapping[str, Any] | None = None, wanted: Mapping[str, str] | None = None) -> Model:
        """Return the model.

        Args:
            values: What to validate in place of the document's own mapping, such as the mapping with defaults added.
            wanted: What is allowed for a key, by its name, where pydantic can't say it.

        Raises:
            WeightWatchError: A value is not allowed. The message names the document, the line, the path of the key,
                the value and what is allowed.
        """
        try:
            return self._model.model_validate(self.data if values is None else dict(values))
        except ValidationError as error:
            fault, place = _first_fault(self._model, error)
            raise self.error(place.keys, _explained(fault, place, wanted or {})) from None

    def inside(self, key: str, model: "type[Inner]") -> "Document[Inner]":
        """Return the mapping under a key as a document of its own, which another model describes.

        Raises:
            WeightWatchError: There is no mapping under the key.
        """
        pairs = self._nodes.value if isinstance(self._nodes, yaml.MappingNode) else []
        nodes = next((value for name, value in pairs if name.value == key), None)
        return Document(model, self.data.get(key), self._title, nodes)

    def error(self, keys: Sequence[int | str], message: str) -> WeightWatchError:
        """Return an error about a key, or about the mapping that lacks it, with title and line."""
        where = self._title if self._nodes is None else f"{self._title}, line {_line(self._nodes, keys)}"
        return WeightWatchError(f"{where}: {_cut(message, _MESSAGE)}")


def _line(node: yaml.Node, keys: Sequence[int | str]) -> int:
    """Return the line of a key, or of the mapping that lacks it."""
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
class _Place:
    """A place in a document, found by following the annotations of its model.

    Attributes:
        keys: The keys that lead to it. Pydantic's locations also have tags, which tell the branches of a union apart.
        known: The keys that are known beside the last one.
        annotation: The type of its value.
        union: Position in pydantic's location of the first tag, if there is one.
    """

    keys: list[int | str]
    known: list[int | str]
    annotation: Any
    union: int | None


def _place(model: type[BaseModel], location: Sequence[int | str]) -> _Place:
    keys: list[int | str] = []
    known: list[int | str] = []
    annotation: Any = model
    union = None
    for position, part in enumerate(location):
        branches = _branches(annotation)
        if len(branches) > 1:  # the part is a tag
            annotation = next((branch for branch in branches if part in _tags(branch)), None)
            union = position if union is None else union
            continue
        keys.append(part)
        fields = _fields(branches[0])
        known = list(fields)
        annotation = fields.get(part) if fields else next(reversed(get_args(branches[0])), None)
    return _Place(keys, known, annotation, union)


def _branches(annotation: Any) -> list[Any]:
    """Return the types of a union, or the one type that an annotation is, without None."""
    if get_origin(annotation) is Annotated:
        return _branches(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for inner in get_args(annotation) if inner is not NoneType for one in _branches(inner)]
    return [annotation]


def _fields(annotation: Any) -> dict[int | str, Any]:
    """Return the types of a model's fields by their keys in YAML; nothing for other types."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {}
    return {field.alias or name: field.annotation for name, field in annotation.model_fields.items()}


def _tags(branch: Any) -> list[Any]:
    """Return pydantic's tags of a union's branch: the name of the model, and the values of its discriminator."""
    return [getattr(branch, "__name__", None), *(tag for field in _fields(branch).values() for tag in get_args(field))]


def _first_fault(model: type[BaseModel], error: ValidationError) -> tuple[Any, _Place]:
    """Return the first fault and its place.

    A union reports the faults of each branch. The branch that was meant is the one whose keys are there: what is wrong
    deeper in it says more than that another branch's keys are missing.
    """
    faults = [(fault, _place(model, fault["loc"])) for fault in error.errors()]
    first, place = faults[0]
    if place.union is None:
        return first, place
    head = first["loc"][: place.union]
    branches = [one for one in faults if one[0]["loc"][: place.union] == head]
    return max(branches, key=lambda one: (one[0]["type"] not in ("missing", "extra_forbidden"), len(one[0]["loc"])))


# Where pydantic's own words don't finish the sentence "it should be …".
_WANTED = {
    "string_type": "a text; put it in quotes",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores",
    "too_short": "a list of at least one",
    "too_long": "a shorter list",
    "invalid_key": "a word",
    "model_attributes_type": "keys and values",
}


def _explained(fault: Any, place: _Place, wanted: Mapping[str, str]) -> str:
    """Return what is wrong: the path of the key, the value, and what is allowed."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place.keys).lstrip(".")
    kind, about = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{path} is not a known key; known are {', '.join(map(str, place.known))}."
    if kind == "missing":
        return f"{path} is missing; give it a value."
    if kind == "union_tag_not_found":
        return f"{path} lacks its key {about['discriminator']}."
    if kind == "union_tag_invalid":
        key = about["discriminator"].strip("'")
        return f"{path}.{key}: {about['tag']!r} is not allowed; it should be one of {about['expected_tags']}."
    if kind == "value_error":
        return f"{path}: {fault['msg'].removeprefix('Value error, ')}.".removeprefix(": ")
    allowed = wanted.get(str(place.keys[-1])) or _WANTED.get(kind) or fault["msg"].removeprefix("Input should be ")
    if kind == "model_type":
        allowed = _keys_such_as(place.annotation)
    return f"{path}: {_shown(fault['input'])} is not allowed; it should be {allowed}."


def _keys_such_as(annotation: Any) -> str:
    return f"keys such as `{next(iter(_fields(_branches(annotation)[0])))}:`"


def _shown(value: Any) -> str:
    return _cut(repr(value), _SHOWN)


def _cut(text: str, length: int) -> str:
    """Return a text, or the beginning of a longer one."""
    return text if len(text) <= length else f"{text[:length]}…"
