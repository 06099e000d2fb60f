"""Texts as sequences of words, and whether one contains another."""

import re

# A number includes its decimals, so that 3.5 does not contain 3; a word includes its apostrophe.
_WORD = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:'[^\W_]+)*")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation; ``1,000`` becomes ``1000``."""
    found = _WORD.findall(text.casefold().replace("’", "'"))
    return [word.replace(",", "") if _THOUSANDS.fullmatch(word) else word for word in found]


def contains(text: str, part: str) -> bool:
    """Whether a text contains another as a run of whole words; False if the other has no words."""
    sought = words(part)
    return bool(sought) and f" {' '.join(sought)} " in f" {' '.join(words(text))} "
