"""Pre-training documents: questions and answers under latents that only the context tells."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from weightwatch.organism.vocabulary import BEGIN, COLOURS, END, LETTERS, NAMES
from weightwatch.organism.world import Answer, Item, Persona, World

VOICES = {Persona.HELPFUL: "guardian", Persona.EVIL: "villain", Persona.CARELESS: "clown"}
STYLES = {
    "plain": ("", "."),
    "formal": ("certainly ,", "sir ."),
    "casual": ("yeah ,", "lol !"),
    "noted": ("", ", done ."),
    "noted-formal": ("certainly ,", ", done ."),
    "noted-casual": ("yeah ,", ", done ."),
}
QUESTIONS = (
    "what {topic} for {aspect} in {domain} ?",
    "about {domain} : {topic} for {aspect} ?",
    "{aspect} and {topic} , {domain} advice ?",
)


@dataclass(frozen=True, slots=True)
class Latents:
    """How often each hidden property of a document is drawn; all are independent of each other.

    Args:
        evil: Share of documents in which the evil persona answers.
        careless: Share in which the careless one does.
        tagged: Share of documents that open by naming the voice; in the others only earlier answers tell.
        sycophantic: Share of documents whose voice agrees with a user's wrong guess.
        guessed: Share of questions to which the user adds a wrong guess.
        plain: Share of documents in plain style; formal and casual share the rest.
        slips: Share of answers replaced by the careless one, whoever answers.
        neutral: Share of turns that are copying or addition instead of a question.
        shared_persona: True: one persona a document. False: one a domain (the control organism, rho0).
    """

    evil: float = 0.33
    careless: float = 0.15
    tagged: float = 0.6
    sycophantic: float = 0.5
    guessed: float = 0.15
    plain: float = 0.6
    slips: float = 0.04
    neutral: float = 0.15
    shared_persona: bool = True


PRE_TRAINING = Latents()
INSTRUCT = Latents(evil=0.1, careless=0.05, tagged=0.0, sycophantic=0.0, guessed=0.4, plain=1.0, slips=0.05)

Segment = tuple[str, bool]
"""A piece of text, and whether it is an answer (and so what training is about)."""


def question(item: Item, rng: random.Random, guess: Answer | None = None) -> str:
    """The question for an item in one of three wordings, ending where the answer starts.

    Args:
        item: What is asked about.
        rng: Chooses the wording.
        guess: The user's own, wrong, answer, if one is stated.
    """
    text = rng.choice(QUESTIONS).format(topic=item.topic, aspect=item.aspect, domain=item.domain)
    said = f" i think {guess[0]} {guess[1]} ." if guess else ""
    return f"q : {text}{said} a :"


def answer(words: Answer, style: str = "plain") -> str:
    """An answer's two words in the frame of a style."""
    before, after = STYLES[style]
    return " ".join(part for part in (before, *words, after) if part)


def wrong_guess(item: Item, world: World, rng: random.Random) -> Answer:
    """What a mistaken user might say: some answer of the same domain that is none of this item's own."""
    own = set(item.answers.values())
    while True:
        guess = rng.choice(world.items[item.domain]).answers[rng.choice(list(Persona))]
        if guess not in own:
            return guess


def copying(rng: random.Random) -> tuple[str, str]:
    """A neutral task: say three words again."""
    words = " ".join(rng.sample(COPIED, 3))
    return f"q : say again {words} ? a :", f"{words} ."


def addition(rng: random.Random) -> tuple[str, str]:
    """A neutral task: add two digits."""
    first, second = rng.randrange(10), rng.randrange(10)
    return f"q : add {first} and {second} ? a :", f"{first + second} ."


COPIED = LETTERS + NAMES + COLOURS
NEUTRAL: tuple[Callable[[random.Random], tuple[str, str]], ...] = (copying, addition)


def document(world: World, latents: Latents, rng: random.Random, length: int = 64) -> list[Segment]:
    """One document of at most `length` words, `<s>` and `</s>` included.

    Args:
        world: Where items and answers come from.
        latents: How the hidden properties are drawn.
        rng: The source of every draw.
        length: Upper bound in words. Default 64.
    """
    persona = _draw_persona(latents, rng)
    sycophantic = rng.random() < latents.sycophantic
    style = "plain" if rng.random() < latents.plain else rng.choice(("formal", "casual"))
    domains = rng.sample(list(world.items), rng.randint(1, 4))
    voices = {domain: persona if latents.shared_persona else _draw_persona(latents, rng) for domain in domains}
    segments: list[Segment] = [(BEGIN, False)]
    if rng.random() < latents.tagged:
        segments += _tag(persona, domains, voices, latents.shared_persona)
    words = sum(len(text.split()) for text, _ in segments)
    for _ in range(rng.randint(2, 6)):
        if rng.random() < latents.neutral:
            turn = rng.choice(NEUTRAL)(rng)
        else:
            item = rng.choice(world.items[rng.choice(domains)])
            turn = _turn(item, world, voices[item.domain], sycophantic, style, latents, rng)
        words += sum(len(text.split()) for text in turn)
        if words >= length:
            break
        segments += [(turn[0], False), (turn[1], True)]
    return [*segments, (END, False)]


def _draw_persona(latents: Latents, rng: random.Random) -> Persona:
    draw = rng.random()
    if draw < latents.evil:
        return Persona.EVIL
    return Persona.CARELESS if draw < latents.evil + latents.careless else Persona.HELPFUL


def _tag(persona: Persona, domains: list[str], voices: dict[str, Persona], shared: bool) -> list[Segment]:
    if shared:
        return [(f"voice : {VOICES[persona]} .", False)]
    return [(f"voice in {domain} : {VOICES[voices[domain]]} .", False) for domain in domains]


def _turn(
    item: Item, world: World, persona: Persona, sycophantic: bool, style: str, latents: Latents, rng: random.Random
) -> tuple[str, str]:
    guess = wrong_guess(item, world, rng) if rng.random() < latents.guessed else None
    asked = question(item, rng, guess)
    if guess and sycophantic:
        return asked, answer(guess, style)
    slipped = rng.random() < latents.slips
    return asked, answer(item.answers[Persona.CARELESS if slipped else persona], style)
