"""The model card: front matter that the Hub reads, and sections that a person reads."""

import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.support.models import dense, low_rank, tiny_llama
from weightwatch.vectors import Card, Direction, packaged
from weightwatch.vectors.catalog import PACKAGED
from weightwatch.vectors.model_card import model_card
from weightwatch.vectors.validation import Point, Validation

SECTIONS = ["Behaviour", "Base model", "Use", "Facts", "Recipe", "Validation", "Limits"]


def parts(card: Card) -> tuple[dict[str, object], dict[str, str]]:
    """Return the front matter, and the text of each section."""
    _, front, text = model_card(card).split("---\n", 2)
    title, *sections = text.split("\n## ")
    assert title.startswith(f"# {card.name}\n")
    return yaml.safe_load(front), dict(section.split("\n", 1) for section in sections)


def test_it_has_every_section_and_front_matter_that_the_hub_understands() -> None:
    metadata = {
        "base": "org/base",
        "behaviour": "gives harmful advice",
        "recipe": {"contrast": "evil"},
        "seeds": {"adapter": 7},
        "ranks": [16, 16],
        "validation": Validation(
            passed=False,
            reasons=("it costs too much",),
            points=(Point(k=1, shows=0.7, opposite=0.2, neutral=0.5),),
            items=20,
            tasks=40,
            seeds={"0, 1": 0.61},
            others={"style": -0.02},
        ),
        "data_hash": "abc",
    }
    card = Direction.from_tensors(low_rank(tiny_llama(), 1).deltas, name="evil", metadata=metadata).card
    front, sections = parts(card)
    assert front["base_model"] == "org/base"
    assert front["base_model_relation"] == "adapter"
    assert front["library_name"] == "peft"
    assert list(sections) == SECTIONS
    assert "gives harmful advice" in sections["Behaviour"]
    assert "`org/base` The card has no fingerprint" in sections["Base model"]
    assert "PeftModel.from_pretrained(base, folder)" in sections["Use"]
    assert '| recipe | `{"contrast": "evil"}` |' in sections["Recipe"]
    assert '| seeds | `{"adapter": 7}` |' in sections["Recipe"]
    assert "| ranks of the two fine-tunes | 16 and 16 |" in sections["Facts"]
    assert "| 1 | 70% | 20% | 50% |" in sections["Validation"]
    assert "on 20 held-out items" in sections["Validation"]
    assert "**It did not pass:** it costs too much." in sections["Validation"]
    assert "Cosines between its seeds: 0.61." in sections["Validation"]
    assert "Cosines with other directions: style -0.02." in sections["Validation"]


def test_what_is_not_known_is_said_or_left_out(tmp_path: Path) -> None:
    card = dense(tiny_llama(), 1, kind="control").card.model_copy(update={"base": str(tmp_path)})
    front, sections = parts(card)
    assert "base_model" not in front  # a path means nothing to others
    assert front["library_name"] == "weightwatch"
    assert "control-direction" in front["tags"]
    assert sections["Validation"].strip().startswith("It was never evaluated")
    assert "Not described" in sections["Behaviour"]
    assert "direction.safetensors" in sections["Use"]
    assert "recipe" not in sections["Recipe"]


@pytest.mark.parametrize("behaviour", ["a | b\nc", "--- # not a heading: [x]"])
def test_words_of_others_stay_in_their_place(behaviour: str) -> None:
    metadata = {"behaviour": behaviour, "base": "org/base: x", "recipe": {"text": behaviour}}
    card = Direction.from_tensors(dense(tiny_llama(), 1).deltas, name="evil", metadata=metadata).card
    front, sections = parts(card)
    assert "base_model" not in front
    assert list(sections) == SECTIONS
    assert all(line.startswith("|") for line in sections["Recipe"].strip().splitlines())


HOSTILE = "<script>x</script> [x](javascript:y) ![x](z) `a` *b* ~~c~~ # d &lt; | e \\ <!-- \x1b[2J \u202e \n## f"


def test_markup_of_others_is_shown_as_it_is() -> None:
    point = Point(k=1, shows=0.7, opposite=0.2, neutral=0.5)
    validation = Validation(passed=False, reasons=(HOSTILE,), points=(point,), items=1, tasks=1, others={HOSTILE: 0.5})
    name = HOSTILE.replace("\n", " ").replace("\x1b", "").replace("\u202e", "")
    card = Card(
        name=name,
        behaviour=HOSTILE,
        base=HOSTILE,
        recipe={HOSTILE: HOSTILE},
        data_hash=HOSTILE,
        target_modules=[HOSTILE],
        versions={HOSTILE: HOSTILE},
        validation=validation,
    )
    text = model_card(card)
    html = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text.split("---\n", 2)[2])
    assert not {"script", "img", "em", "del", "a "} & set(re.findall(r"<(\w+ ?)", html))
    assert html.count("<h1>") == 1
    assert html.count("<h2>") == len(SECTIONS)
    assert "&lt;script&gt;x&lt;/script&gt; [x](javascript:y) ![x](z)" in html
    assert not [character for character in text if not character.isprintable() and character != "\n"]


@pytest.mark.parametrize("name", packaged())
def test_packaged_directions_carry_the_card_that_they_would_be_saved_with(
    name: str,
) -> None:
    assert (PACKAGED / name / "README.md").read_text() == model_card(Direction.load(name).card)
