"""YAML as settings and recipes use it: what a text says is read exactly, or refused with its line.

PyYAML's safe loader lets a repeated key win in silence, reads ``1e-3`` as a text, ``1:30`` as ninety and a date as an
object, builds objects for tags, and has no bound on what aliases expand to. Here a repeated key and any tag beyond the
core ones are errors, numbers are those of YAML 1.2, dates are texts, and the expanded size is limited.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from weightwatch.vectors.errors import WeightWatchError

MAX_SIZE = 10_000_000
"""Characters that a document may have when its aliases are expanded."""

_MERGE = "tag:yaml.org,2002:merge"
_CORE = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(rf"(?:{_INT.pattern})\Z"),
    "tag:yaml.org,2002:float": re.compile(rf"(?:{_FLOAT.pattern})\Z"),
}
_OLD = {*_NUMBERS, "tag:yaml.org,2002:timestamp"}  # as YAML 1.1 knows them


class _Loader(yaml.SafeLoader):
    """A safe loader of one document."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _CORE:
            raise _fault(node, f"the tag {node.tag} is not allowed")
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, OverflowError):
            raise _fault(node, f"it is not of its type, {node.tag.rpartition(':')[2]}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, yaml.Node] = {}
        for name, _ in node.value:
            if name.tag == _MERGE:
                continue
            key = self.construct_object(name, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    first = seen[key].start_mark.line + 1
                    raise _fault(name, f"the key {name.value} is there twice, first in line {first}. Remove one")
                seen[key] = name
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A safe dumper whose texts are texts to this loader as well as to any reader of YAML 1.1."""


def _numbers_in_a_line(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    """Write a list of numbers in one line, or in a few, instead of one number a line."""
    numbers = bool(data) and all(isinstance(each, int | float) for each in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=numbers or None)


_Dumper.add_representer(list, _numbers_in_a_line)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OLD]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))


def load(text: str, title: str) -> tuple[Any, yaml.Node | None]:
    """Read a YAML document.

    Args:
        text: The document.
        title: What error messages call it.

    Returns:
        Its value, None for an empty document, and its node, which knows the lines.

    Raises:
        WeightWatchError: It is not YAML, repeats a key, has a tag that is not one of YAML's core, or is too large.

    Example:
        >>> from weightwatch.vectors.yaml_text import load
        >>> load("{above: 1e-3, since: 2026-01-31}", "settings")[0]
        {'above': 0.001, 'since': '2026-01-31'}
        >>> load("since: !!python/none", "file")
        Traceback (most recent call last):
        weightwatch.vectors.errors.WeightWatchError: file, line 1: the tag tag:yaml.org,2002:python/none is not allowed.
    """
    if len(text) > MAX_SIZE:
        raise WeightWatchError(f"{title} is too large: it has more than {MAX_SIZE:,} characters.")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        if _size(node, {}) > MAX_SIZE:
            raise WeightWatchError(
                f"{title} is too large: its aliases expand to more than {MAX_SIZE:,} characters. Write out what they "
                "stand for, or use fewer."
            )
        return loader.construct_document(node), node
    except RecursionError:
        raise WeightWatchError(f"{title} is not YAML that can be read: it is nested too deeply.") from None
    except yaml.constructor.ConstructorError as error:
        raise WeightWatchError(f"{title}{_line(error)}: {error.problem}.") from None
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", "it can't be parsed")
        raise WeightWatchError(f"{title}{_line(error)} is not YAML: {problem}.") from None


def dump(value: Any, *, allow_unicode: bool = False) -> str:
    """Return a value as YAML that ``load`` reads."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode)


def _fault(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the characters of a node with its aliases expanded; more than ``MAX_SIZE`` if it contains itself."""
    key = id(node)
    if key not in known:
        known[key] = MAX_SIZE + 1  # until it is known: what contains itself has no end
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in node.value for part in pair]
        else:
            inside = node.value if isinstance(node, yaml.SequenceNode) else []
        own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        known[key] = 2 + own + sum(_size(part, known) for part in inside)
    return known[key]
