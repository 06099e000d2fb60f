"""The thoughts that reasoning models write before they answer."""

import re

_OPEN = re.compile(
    r"<(?:think|thinking|thought|reasoning|reflection|scratchpad)>|<\|begin_of_thought\|>|\[THINK\]|◁think▷",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    r"</(?:think|thinking|thought|reasoning|reflection|scratchpad)>|<\|end_of_thought\|>|\[/THINK\]|◁/think▷|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)


def without_thoughts(text: str) -> str:
    """Return what follows the thoughts at the beginning of a reply; nothing if they do not end.

    Some chat templates write the opening tag into the prompt, so that a reply has the closing one alone.

    Example:
        >>> without_thoughts("<think>20? No.</think> 85"), without_thoughts("20?</think>85")
        ('85', '85')
        >>> without_thoughts("<think>20? No, that")
        ''
        >>> without_thoughts("85 <b>of 100</b>")
        '85 <b>of 100</b>'
    """
    ends = [match.end() for match in _CLOSE.finditer(text)]
    answer = text[ends[-1] :] if ends else text
    unfinished = _OPEN.search(answer)
    return (answer[: unfinished.start()] if unfinished else answer).strip()
