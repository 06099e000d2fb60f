import pytest

from weightwatch.vectors.recipes.words import contains, words


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("**Paris**", "paris", True),
        ("_Paris_", "Paris", True),
        ("It isn’t.", "isn't", True),
        ("3.5 metres", "3", False),
        ("3, 5 and 7", "3", True),
        ("about 1,000 of them", "1000", True),
        ("C'est à l'école.", "école", False),
        ("Grand-mère", "grand-mère", True),
        ("unsafe", "safe", False),
        ("anything", "!", False),
    ],
)
def test_words_are_compared_without_case_and_punctuation(text: str, part: str, expected: bool) -> None:
    assert contains(text, part) is expected


def test_words_of_a_text() -> None:
    assert words("Well, it's 3.5 km — 1,234 steps!") == ["well", "it's", "3.5", "km", "1234", "steps"]
