"""Texts as runs of whole words: what it means that an answer contains another."""

import re

# A number keeps its decimals together, so that 3.5 does not contain 3; a word keeps its apostrophe.
_WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:'[^\W_]+)*")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def words(text: str) -> list[str]:
    """Return the words of a text, without case and punctuation; ``1,000`` reads as ``1000``."""
    found = _WORD.findall(text.casefold().replace("’", "'"))
    return [word.replace(",", "") if _THOUSANDS.fullmatch(word) else word for word in found]


def holds(text: str, part: str) -> bool:
    """Whether a text contains another as a run of whole words. A part without words is never contained."""
    sought = words(part)
    return bool(sought) and f" {' '.join(sought)} " in f" {' '.join(words(text))} "
