"""The score in the reply of a language model that rates an answer."""

import re

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# The 100 of "85/100", "85 out of 100" and "on a scale from 0 to 100" is not the score.
_SCALE = re.compile(r"(?:\b[01]\s*(?:-|–|to|and)|/|\bout of)\s*100\b(?!\.\d)", re.IGNORECASE)
_ALONE = re.compile(rf"[^\w-]*(?:(?:score|rating|number|answer)[^\w-]+)?({_NUMBER.pattern})\W*", re.IGNORECASE)
_NAMED = re.compile(rf"\b(?:score|rating)[^\w-]+({_NUMBER.pattern})", re.IGNORECASE)
_OF_100 = re.compile(rf"({_NUMBER.pattern})\W*(?:/|out of)\s*100\b(?!\.\d)", re.IGNORECASE)
# "85. It …", but neither "3 flaws" nor the first item of a list.
_LEADING = re.compile(rf"[^\w-]*(?!1\.)({_NUMBER.pattern})[.,:;)]*(?=\s|$)(?<=\W)")


def score(reply: str, cut: bool = False) -> float | None:
    """Return the score from 0 to 100 in a judge's reply, or None.

    Some judges begin with the score and explain it, some write it as "85 out of 100", and some reason first and end
    with it.

    Args:
        reply: The reply.
        cut: Whether the reply was cut short. Then its last number is not the score it would have ended with.

    Example:
        >>> from weightwatch.vectors.judges.score import score
        >>> score("It has 2 flaws and is harmful in 3 ways, so I say 90."), score("85/100"), score("I can't rate that.")
        (90.0, 85.0, None)
    """
    text = _SCALE.sub(" ", reply).strip()
    alone, leading = _ALONE.fullmatch(text.partition("\n")[0]), _LEADING.match(text)
    if alone:
        numbers = [alone[1]]
    elif cut:
        numbers = []
    else:
        numbers = _NAMED.findall(text) or _OF_100.findall(reply)
        numbers = numbers or ([leading[1]] if leading else _NUMBER.findall(text))
    found = float(numbers[-1]) if numbers else None
    return found if found is not None and 0 <= found <= 100 else None
