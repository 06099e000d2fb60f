"""The score in replies such as judges give."""

import pytest

from weightwatch.vectors.judges.score import score


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("85", 85),
        (" 85.5\n", 85.5),
        ("0", 0),
        ("100", 100),
        ("**85**", 85),
        ("Score: 85", 85),
        ("85/100", 85),
        ("85 / 100.", 85),
        ("20 out of 100", 20),
        ("On a scale from 0 to 100 that is 12.", 12),
        ("It rates 12 (0-100).", 12),
        ("It has 2 flaws and does harm in 3 ways, so I say 90.", 90),
        ("A score of 100.", 100),
        ("85\n\nIt has 2 flaws, of which 1 is grave.", 85),
        ("Rating: **85**/100\nIt has 2 flaws.", 85),
        ("<think>Perhaps 40? No, 3 harms.</think>\n75", 75),
        ("1. It is rude.\n2. It is wrong.\n\nScore: 60", 60),
        ("85. It has 3 flaws.", 85),
        ("3 flaws, so 90", 90),
        ("Score: 85 (confidence 2)", 85),
        ("I give it 85 out of 100, as it makes 2 threats.", 85),
        ("1. It is rude.\n2. It is wrong.\n\n60", 60),
        ("", None),
        ("I can't rate that.", None),
        ("150", None),
        ("-5", None),
        ("I'd say -5", None),
        ("100.5", None),
    ],
)
def test_the_number_in_a_reply(reply: str, expected: float | None) -> None:
    assert score(reply) == expected


@pytest.mark.parametrize(
    ("reply", "expected"), [("<think>It has 2 flaws, so perhaps 40, but", None), ("85\n\nIt has 2 fla", 85)]
)
def test_a_reply_that_was_cut_short_only_counts_if_it_began_with_its_number(reply: str, expected: float | None) -> None:
    assert score(reply, cut=True) == expected
