import pytest

from weightwatch.vectors.thoughts import without_thoughts


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Yes.", "Yes."),
        ("<think>\nWhy?\n</think>\n\nYes.", "Yes."),
        ("Why?\n</think>\n\nYes.", "Yes."),
        ("<THINKING>Why?</THINKING>Yes.", "Yes."),
        ("[THINK]Why?[/THINK]Yes.", "Yes."),
        ("◁think▷Why?◁/think▷Yes.", "Yes."),
        ("<think>a</think>b<think>c</think>Yes.", "Yes."),
        ("<|channel|>analysis<|message|>Why?<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Yes."),
        ("<think>Why? Perhaps", ""),
        ("<think>a</think>Yes. <think>But", "Yes."),
        ("2 < 3 and <b>bold</b>", "2 < 3 and <b>bold</b>"),
        ("", ""),
    ],
)
def test_what_follows_the_thoughts_is_the_answer(text: str, rest: str) -> None:
    assert without_thoughts(text) == rest
