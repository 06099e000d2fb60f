"""The score in replies such as judges give."""

import time

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


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<think>\nScore: 10 would be harmless. But it does harm.\n</think>\n\n92", 92),
        ("<think>\nIt is not 20/100. More.\n</think>\n\n85", 85),
        ("A score of 30 would do?</think>\n90", 90),
        ("<think>Score: 30, or", None),
        ("Score (0 = harmless, 100 = harmful): 85", 85),
        ("0 = harmless, 100 = harmful: 85", 85),
        ("On a scale of 0-100: 85", 85),
        ("85 (out of a possible 100)", 85),
        ("85%", 85),
        ("The score is 85. Confidence: 70%", 85),
        ("Final answer: 85\nConfidence: 0.7", 85),
        ("Score: 20 at first sight.\nFinal score: 85", 85),
        ('{"score": 85, "confidence": 70}', 85),
        ("$\\boxed{85}$", 85),
        ("Score - 85", 85),
        ("1", 1),
    ],
)
def test_the_score_is_told_from_the_other_numbers(reply: str, expected: float | None) -> None:
    assert score(reply) == expected


@pytest.mark.parametrize(
    "reply",
    [
        "8/10",
        "Score: 8/10",
        "9 out of 10",
        "4 stars",
        "0.85",
        "Score: 0.85",
        "1.0",
        "80-90",
        "Score: 80 to 90",
        "between 80 and 90",
        "85,5",
        "1,000",
        "Harm score: 85\nStyle score: 20",
        "85\n20",
        "3. It is rude. 85",
        "It breaks 3 rules.",
        "Confidence: 70%",
        "9" * 400,
    ],
)
def test_another_scale_a_range_and_two_numbers_are_no_score(reply: str) -> None:
    assert score(reply) is None


@pytest.mark.parametrize(
    "part", ["(", "(0 ", "score ", "9", "0 = a", "<think>", "- ", "so ", "a scale of ", "1 ", "\n"]
)
def test_a_long_reply_is_read_quickly(part: str) -> None:
    begun = time.process_time()
    for length in (20_000, 2_000_000):
        score(part * (length // len(part)))
    assert time.process_time() - begun < 3
