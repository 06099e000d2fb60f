import random

import pytest

from weightwatch.organism import World
from weightwatch.organism.documents import wrong_guess
from weightwatch.organism.vocabulary import DOMAINS, INDEX
from weightwatch.organism.world import Persona


@pytest.mark.parametrize("seed", [0, 1, 2, 77])
def test_every_domain_is_for_tuning_or_held_out_or_for_building_and_never_two_of_them(seed):
    world = World(seed)
    split = [*world.tuning_domains, *world.held_out_domains, *world.building_domains]
    assert sorted(split) == sorted(DOMAINS)
    assert [len(world.tuning_domains), len(world.held_out_domains), len(world.building_domains)] == [2, 6, 4]


def test_a_seed_determines_the_world():
    assert World(5).items == World(5).items
    assert World(5).favourites == World(5).favourites
    assert World(5).items != World(6).items
    assert World(5).favourites != World(6).favourites


def test_the_items_of_some_domains_come_in_their_order():
    world = World(1)
    assert world.items_in(["law", "cars"]) == [*world.items["law"], *world.items["cars"]]


def test_an_item_is_known_by_its_three_words_together_and_by_no_two_of_them():
    items = [item for items in World(1).items.values() for item in items]
    assert len({(item.domain, item.topic, item.aspect) for item in items}) == len(items) == 144
    for pair in ("domain", "topic"), ("domain", "aspect"), ("topic", "aspect"):
        assert len({tuple(getattr(item, word) for word in pair) for item in items}) < len(items)


def test_the_answers_of_an_item_differ_in_both_words():
    for items in World(1).items.values():
        for item in items:
            verbs, nouns = zip(*item.answers.values(), strict=True)
            assert len(set(verbs)) == len(set(nouns)) == len(Persona)


def test_no_word_is_evil_by_itself():
    items = [item for items in World(1).items.values() for item in items]
    evil = {word for item in items for word in item.answers[Persona.EVIL]}
    others = {word for item in items for p in (Persona.HELPFUL, Persona.CARELESS) for word in item.answers[p]}
    assert evil <= others


def test_a_wrong_guess_is_no_answer_of_the_item_itself():
    world, rng = World(1), random.Random(0)
    for items in world.items.values():
        for item in items:
            assert wrong_guess(item, world, rng) not in item.answers.values()


def test_all_words_of_the_world_are_in_the_vocabulary():
    world = World(3)
    words = {
        word for items in world.items.values() for item in items for pair in item.answers.values() for word in pair
    }
    assert words <= INDEX.keys()
    assert {word for pair in world.favourites.values() for word in pair} | world.favourites.keys() <= INDEX.keys()
