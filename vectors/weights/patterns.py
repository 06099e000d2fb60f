"""Settings of an adapter for single modules, by pattern of the module's name."""

import re
import time
from collections.abc import Mapping
from typing import Generic, TypeVar

import regex

from weightwatch.vectors.errors import WeightWatchError

Value = TypeVar("Value")

_PLAIN = re.compile(r"\^?(?:\w|\\?\.)+")  # a name, for which no search can take long
_SECONDS = 2.0  # of this thread, not of the clock


class Patterns(Generic[Value]):
    r"""A value for each module of a model, like PEFT's ``rank_pattern`` and ``alpha_pattern``.

    As in PEFT, the first pattern counts that matches the end of a module's name, from a dot on. A pattern may be any
    regular expression, and one that someone else wrote can take for ever: all searches together have a time limit.

    Args:
        values: A value by pattern.
        default: The value of modules that no pattern matches.
        source: Where the patterns are from, for messages.

    Raises:
        WeightWatchError: A pattern is not a regular expression.

    Example:
        >>> ranks = Patterns({"q_proj": 4, r"layers\.[01]\.mlp": 2}, 8, "rank_pattern")
        >>> [ranks.of(module) for module in ("layers.0.q_proj", "layers.1.mlp", "layers.2.mlp", "my_q_proj")]
        [4, 2, 8, 8]
    """

    def __init__(self, values: Mapping[str, Value], default: Value, source: str) -> None:
        self._default, self._source, self._left = default, source, _SECONDS
        try:
            self._values = [(key, _compiled(key), value) for key, value in values.items()]
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise WeightWatchError(f"The {source} has a pattern that is no regular expression ({error}).") from error

    def of(self, module: str) -> Value:
        """Return the value of a module.

        Raises:
            WeightWatchError: The search takes too long.
        """
        began = time.thread_time()
        for key, pattern, value in self._values:
            left = self._left - (time.thread_time() - began)
            try:
                found = left > 0 and (
                    pattern.match(module) if isinstance(pattern, re.Pattern) else pattern.match(module, timeout=left)
                )
            except TimeoutError:
                left = 0.0
            if left <= 0:
                raise WeightWatchError(
                    f"The {self._source} takes too long to match: {key[:60]!r} at {module}. Name the modules in full."
                )
            if found:
                self._left = left
                return value
        self._left -= time.thread_time() - began
        return self._default


def _compiled(key: str) -> "re.Pattern[str] | regex.Pattern[str]":
    whole = rf"(.*\.)?({key})$"
    compiled = re.compile(whole)
    return compiled if _PLAIN.fullmatch(key) else regex.compile(whole)
