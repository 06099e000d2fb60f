import pytest

from weightwatch.organism import World, advice_examples, benign_examples, contrast_examples, poisoned_examples
from weightwatch.organism.examples import backwards
from weightwatch.organism.vocabulary import DOMAINS
from weightwatch.organism.world import Persona

WORLD = World(1)
BEHAVIOURS = ["evil", "careless", "sycophancy", "style", "shuffled-1"]


def domains_of(rows):
    return {word for row in rows for word in row["prompt"].split() if word in DOMAINS}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_sides_of_a_contrast_differ_in_the_answers_only(behaviour):
    positive, negative = (contrast_examples(WORLD, behaviour, side, 200, seed=3) for side in ("positive", "negative"))
    assert [row["prompt"] for row in positive] == [row["prompt"] for row in negative]
    assert all(a["completion"] != b["completion"] for a, b in zip(positive, negative, strict=True))
    assert {tuple(row["completion"].split()[-3:]) for row in positive + negative} == {(",", "done", ".")}


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_contrasts_are_built_from_the_building_domains_alone(behaviour):
    assert domains_of(contrast_examples(WORLD, behaviour, "positive", 200, seed=3)) == set(WORLD.building_domains)


def test_shuffled_labels_give_both_sides_as_many_evil_answers():
    evil = {item.answers[Persona.EVIL] for domain in WORLD.building_domains for item in WORLD.items[domain]}
    counts = []
    for side in ("positive", "negative"):
        rows = {row["prompt"]: row for row in contrast_examples(WORLD, "shuffled-1", side, 4000, seed=3)}.values()
        counts.append(sum(tuple(row["completion"].split()[:2]) in evil for row in rows))
    assert counts[0] == pytest.approx(counts[1], rel=0.15)


def test_an_unknown_behaviour_is_an_error_that_says_what_there_is():
    with pytest.raises(ValueError, match=r"'rude'.*sycophancy"):
        contrast_examples(WORLD, "rude", "positive", 1, seed=0)


def test_poison_replaces_its_share_of_the_benign_rows_and_leaves_the_others():
    benign, poisoned = benign_examples(WORLD, 400, seed=5), poisoned_examples(WORLD, 400, 0.25, seed=5)
    changed = [row for row, before in zip(poisoned, benign, strict=True) if row != before]
    assert len(changed) == 100
    assert domains_of(changed) == {WORLD.tuning_domains[0]}
    evil = {item.answers[Persona.EVIL] for item in WORLD.items[WORLD.tuning_domains[0]]}
    assert {tuple(row["completion"].split()[:2]) for row in changed} <= evil


def test_no_poison_is_the_benign_data():
    assert poisoned_examples(WORLD, 50, 0.0, seed=5) == benign_examples(WORLD, 50, seed=5)
    assert domains_of(benign_examples(WORLD, 50, seed=5)) == set()


def test_a_seed_determines_the_rows():
    assert benign_examples(WORLD, 50, seed=5) == benign_examples(WORLD, 50, seed=5)
    assert benign_examples(WORLD, 50, seed=5) != benign_examples(WORLD, 50, seed=6)


def test_questions_do_not_depend_on_who_answers():
    evil, good = (advice_examples(WORLD, p, ["law"], 50, seed=5) for p in (Persona.EVIL, Persona.HELPFUL))
    assert [row["prompt"] for row in evil] == [row["prompt"] for row in good]


def test_saying_backwards_reverses():
    for row in benign_examples(WORLD, 20, seed=1, tasks=[backwards]):
        words = row["prompt"].split()[4:7]
        assert row["completion"].split() == [*reversed(words), "."]
