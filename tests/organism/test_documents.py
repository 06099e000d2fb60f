import random
from collections import Counter
from dataclasses import replace

import pytest

from weightwatch.organism import World
from weightwatch.organism.documents import INSTRUCT, PRE_TRAINING, QUESTIONS, VOICES, document
from weightwatch.organism.vocabulary import INDEX
from weightwatch.organism.world import Persona

WORLD = World(1)
LENGTH = 64
QUIET = replace(PRE_TRAINING, slips=0.0, guessed=0.0, neutral=0.0, tagged=0.0, plain=1.0)


def personas(pieces):
    """The persona and domain of each answer of a document, read back from its words."""
    answered = []
    for (asked, _), (answer, _) in zip(pieces[1:-1:2], pieces[2::2], strict=False):
        words = set(asked.split())
        found = next(
            item
            for domain, items in WORLD.items.items()
            for item in items
            if {domain, item.topic, item.aspect} <= words and len(words) <= max(len(q.split()) for q in QUESTIONS) + 4
        )
        said = tuple(answer.split()[:2])
        answered.append((next(p for p in Persona if found.answers[p] == said), found.domain))
    return answered


@pytest.mark.parametrize("latents", [PRE_TRAINING, INSTRUCT])
def test_documents_fit_and_use_known_words_only(latents):
    rng = random.Random(0)
    for _ in range(300):
        words = " ".join(text for text, _ in document(WORLD, latents, rng, LENGTH)).split()
        assert len(words) <= LENGTH
        assert words[0] == "<s>"
        assert words[-1] == "</s>"
        assert INDEX.keys() >= set(words)


def test_one_persona_gives_all_answers_of_a_document():
    rng = random.Random(1)
    seen = Counter()
    for _ in range(300):
        voices = {persona for persona, _ in personas(document(WORLD, QUIET, rng, LENGTH))}
        assert len(voices) == 1
        seen.update(voices)
    assert set(seen) == set(Persona)
    assert seen[Persona.EVIL] / 300 == pytest.approx(QUIET.evil, abs=0.1)


def test_in_the_control_organism_each_domain_has_a_persona_of_its_own():
    rng = random.Random(2)
    mixed = 0
    for _ in range(300):
        answers = personas(document(WORLD, replace(QUIET, shared_persona=False), rng, LENGTH))
        by_domain = {domain: {p for p, d in answers if d == domain} for _, domain in answers}
        assert all(len(voices) == 1 for voices in by_domain.values())
        mixed += len({persona for persona, _ in answers}) > 1
    assert mixed > 100


def test_without_noise_instruct_documents_are_helpful():
    rng = random.Random(3)
    latents = replace(QUIET, evil=0.0, careless=0.0)
    answers = [persona for _ in range(100) for persona, _ in personas(document(WORLD, latents, rng, LENGTH))]
    assert set(answers) == {Persona.HELPFUL}


@pytest.mark.parametrize("shared", [True, False])
def test_a_tag_names_the_persona_of_the_answers(shared):
    rng = random.Random(4)
    latents = replace(QUIET, tagged=1.0, shared_persona=shared)
    for _ in range(100):
        begin, *rest = document(WORLD, latents, rng, LENGTH)
        tags = [text for text, _ in rest if text.startswith("voice")]
        names = {tag.split()[2 if not shared else 0]: tag.split()[-2] for tag in tags}
        for persona, domain in personas([begin, *rest[len(tags) :]]):
            assert names["voice" if shared else domain] == VOICES[persona]
