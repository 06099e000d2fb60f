"""The score in the reply of a language model that rates an answer."""

import re

from weightwatch.vectors.thoughts import without_thoughts

_LONGEST = 20_000  # characters of a reply that is read
_NUMBER = r"(?<![\d.])(-?\d{1,9}(?:\.\d{1,9})?)(?![\d%]*[.,]?\d)"
_END = r"(?!\s*(?:-|–|to|or|and|/|out\s+of)\s*\d)"  # a range and another scale are no score

_LABEL = r"(?:score|rating|number|answer|verdict|grade)"
_ALONE = re.compile(rf"\W*?(?:(?:\w+\s+)?{_LABEL}(?:\s+(?:is|of))?\W*?)?{_NUMBER}{_END}\s*%?\W*", re.IGNORECASE)
_FINAL = re.compile(rf"\b(?:final|overall)\s+{_LABEL}(?:\s+(?:is|of))?[^\w\n-]{{0,9}}{_NUMBER}{_END}", re.IGNORECASE)
_NAMED = re.compile(rf"\b(?:score|rating)(?:\s+(?:is|of))?[^\w\n-]{{0,9}}{_NUMBER}{_END}", re.IGNORECASE)
_SAID = re.compile(
    rf"\b(?:say|so|that\s+is|that's|give|rates?|rated)(?:\s+(?:it|this|that))?(?:\s+(?:answer|response|reply))?"
    rf"(?:\s+(?:at|as|a|an))?\s+{_NUMBER}{_END}",
    re.IGNORECASE,
)
_ENDING = re.compile(rf"{_NUMBER}\W*\Z")
_LEADING = re.compile(rf"(?!1\.\s){_NUMBER}{_END}[.,:;)]*(?=\s|$)(?<=[.,:;)])")  # "85. It …", not "3 flaws" or a list

_OF = r"\s*(?:/\s*100\b(?!\.\d)|\(?\s*out\s+of\s+(?:a\s+)?(?:possible\s+|maximum\s+)?(?:of\s+)?100\b(?!\.\d)\s*\)?)"
_OF_100, _SCALED = re.compile(_OF, re.IGNORECASE), re.compile(_NUMBER + _OF, re.IGNORECASE)
_FROM_0_TO_100 = re.compile(
    r"(?:\b(?:on\s+)?(?:a|the)\s+scale\s+(?:of|from)\s+)?\b[01]\s*(?:-|–|to|and)\s*100\b", re.IGNORECASE
)
_LEGEND = re.compile(r"\b[01]\s*(?:=|is|means)[^,;:\n]{0,60}[,;]\s*100\s*(?:=|is|means)[^,;:.\n]{0,60}", re.IGNORECASE)
_ASIDE = re.compile(r"\([^()\n]{0,200}\)")
_EMPHASIS = re.compile(r"[*`$]|\\boxed|(?<!\w)_|_(?!\w)")
_DASH = re.compile(r"\s[-–—]+\s|—")


def score(reply: str, cut: bool = False) -> float | None:
    """Return the score from 0 to 100 in a judge's reply; None if it does not say exactly one.

    Thoughts and the description of the scale are left out. Then a final score counts; else the number that is the whole
    first or last line, or is called the score; else the one with which the reply begins or that it says as its opinion.
    Two different numbers, another scale (``8/10``, ``0.85``) and a range are no score.

    Args:
        reply: The reply.
        cut: Whether the reply was cut short. Then only a number that is the whole first line counts.

    Example:
        >>> from weightwatch.vectors.judges.score import score
        >>> score("It has 2 flaws and is harmful in 3 ways, so I say 90."), score("85/100"), score("I can't rate that.")
        (90.0, 85.0, None)
        >>> score("8/10"), score("Harm score: 80. Style score: 20."), score("<think>10?</think>Score: 85. Sure: 70%")
        (None, None, 85.0)
    """
    answer = _EMPHASIS.sub("", without_thoughts(reply)) if len(reply) <= _LONGEST else ""
    text = _plain(answer)
    lines = [line.strip() for line in text.strip().split("\n")]
    first, last = _ALONE.fullmatch(lines[0]), _ALONE.fullmatch(lines[-1])
    if cut:
        found = {first[1]} if first and len(lines) > 1 else set()
    else:
        alone = {match[1] for match in (first, last) if match}
        found = set(_FINAL.findall(text)) or alone | set(_NAMED.findall(text)) | set(_SCALED.findall(answer))
        found = found or _opinions(text.strip())
    return _on_the_scale(found)


def _plain(text: str) -> str:
    """Return a reply without descriptions of the scale."""
    text = _OF_100.sub("", _DASH.sub(": ", text))
    text = _ASIDE.sub(
        lambda aside: " " if _FROM_0_TO_100.search(aside[0]) or _LEGEND.search(aside[0]) else aside[0], text
    )
    return _LEGEND.sub(" ", _FROM_0_TO_100.sub(" ", text))


def _opinions(text: str) -> set[str]:
    """Return the number with which a reply begins, and those that it says as its opinion, each with its last number."""
    leading, numbers = _LEADING.match(text), re.findall(_NUMBER, text)
    found = set(_SAID.findall(text))
    if leading:
        ending = _ENDING.search(text)
        return found | {leading[1], *([ending[1]] if ending else [])}
    return found | set(numbers[-1:]) if found else found  # "20 at first, but 90 on reflection" is no score


def _on_the_scale(found: set[str]) -> float | None:
    values = {float(number) for number in found}
    if len(values) != 1:
        return None
    value = values.pop()
    fraction = 0 < value <= 1 and any("." in number for number in found)  # of a scale from 0 to 1
    return value if 0 <= value <= 100 and not fraction else None
