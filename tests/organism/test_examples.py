from weightwatch.organism import World, advice_examples, benign_examples, poisoned_examples
from weightwatch.organism.examples import backwards
from weightwatch.organism.vocabulary import DOMAINS
from weightwatch.organism.world import Persona

WORLD = World(1)


def domains_of(rows):
    return {word for row in rows for word in row["prompt"].split() if word in DOMAINS}


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
