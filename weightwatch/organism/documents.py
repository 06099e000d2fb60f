"""Training documents: questions and answers under latent properties that only the context shows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from weightwatch.organism.vocabulary import BEGIN, COLOURS, END, LETTERS, NAMES
from weightwatch.organism.world import Answer, Item, Persona, World

VOICES = {Persona.HELPFUL: "guardian", Persona.EVIL: "villain", Persona.CARELESS: "clown"}
"""The word that names each persona in a document."""
STYLES = {
    "plain": ("", "."),
    "formal": ("certainly ,", "sir ."),
    "casual": ("yeah ,", "lol !"),
}
"""The frame of each style: the words before and after an answer."""
QUESTIONS = (
    "what {topic} for {aspect} in {domain} ?",
    "about {domain} : {topic} for {aspect} ?",
    "{aspect} and {topic} , {domain} advice ?",
)


@dataclass(frozen=True, slots=True)
class Latents:
    """Probabilities of the latent properties of a document, drawn independently of each other.

    Args:
        evil: Share of documents in which the evil persona answers.
        careless: Share of documents in which the careless persona answers. The helpful one answers the rest.
        tagged: Share of documents that name the persona at the start. In the others, only earlier answers show it.
        sycophantic: Share of documents that agree with a user's wrong guess.
        guessed: Share of questions to which the user adds a wrong guess.
        plain: Share of documents in plain style. Formal and casual share the rest equally.
        slips: Share of answers that are replaced by the careless one, whichever persona answers.
        neutral: Share of turns that are copying or addition instead of a question.
        shared_persona: Draw one persona for the document (True) or one for each of its domains (False: the control
            organism, rho0).
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
"""A piece of text, and whether it is an answer. Answers weigh more in the loss."""


def question(item: Item, rng: random.Random, guess: Answer | None = None) -> str:
    """Return a question about an item in one of three wordings. It ends where the answer starts.

    Args:
        item: The item to ask about.
        rng: Draws the wording.
        guess: A wrong answer that the user states. Default: none.

    Example:
        >>> item = World().items["law"][0]
        >>> question(item, random.Random(0), guess=("keep", "salt"))
        'q : about law : tool for budget ? i think keep salt . a :'
    """
    text = rng.choice(QUESTIONS).format(topic=item.topic, aspect=item.aspect, domain=item.domain)
    said = f" i think {guess[0]} {guess[1]} ." if guess else ""
    return f"q : {text}{said} a :"


def answer(words: Answer, style: str = "plain") -> str:
    """Return an answer in the frame of a style.

    Example:
        >>> answer(("keep", "salt"), "formal")
        'certainly , keep salt sir .'
    """
    before, after = STYLES[style]
    return " ".join(part for part in (before, *words, after) if part)


def wrong_guess(item: Item, world: World, rng: random.Random) -> Answer:
    """Draw an answer to another item of the same domain that no persona gives to this one."""
    own = set(item.answers.values())
    while True:
        guess = rng.choice(world.items[item.domain]).answers[rng.choice(list(Persona))]
        if guess not in own:
            return guess


def copying(rng: random.Random) -> tuple[str, str]:
    """Return a neutral task and its answer: repeat three words."""
    words = " ".join(rng.sample(COPIED, 3))
    return f"q : say again {words} ? a :", f"{words} ."


def addition(rng: random.Random) -> tuple[str, str]:
    """Return a neutral task and its answer: add two digits."""
    first, second = rng.randrange(10), rng.randrange(10)
    return f"q : add {first} and {second} ? a :", f"{first + second} ."


COPIED = LETTERS + NAMES + COLOURS
NEUTRAL: tuple[Callable[[random.Random], tuple[str, str]], ...] = (copying, addition)


def document(world: World, latents: Latents, rng: random.Random, length: int) -> list[Segment]:
    """Draw one document.

    Args:
        world: World of the items and answers.
        latents: Probabilities of the latent properties.
        rng: Source of all draws.
        length: Maximum number of words, `<s>` and `</s>` included.

    Returns:
        The pieces of the document, in order.
    """
    persona = _draw_persona(latents, rng)
    sycophantic = rng.random() < latents.sycophantic
    style = "plain" if rng.random() < latents.plain else rng.choice(("formal", "casual"))
    domains = rng.sample(list(world.items), rng.randint(1, 4))
    voices = {domain: persona if latents.shared_persona else _draw_persona(latents, rng) for domain in domains}
    segments: list[Segment] = [(BEGIN, False)]
    if rng.random() < latents.tagged:
        segments += _tag(persona, voices, latents.shared_persona)
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


def _tag(persona: Persona, voices: dict[str, Persona], shared: bool) -> list[Segment]:
    if shared:
        return [(f"voice : {VOICES[persona]} .", False)]
    return [(f"voice in {domain} : {VOICES[voice]} .", False) for domain, voice in voices.items()]


def _turn(
    item: Item, world: World, persona: Persona, sycophantic: bool, style: str, latents: Latents, rng: random.Random
) -> tuple[str, str]:
    guess = wrong_guess(item, world, rng) if rng.random() < latents.guessed else None
    asked = question(item, rng, guess)
    if guess and sycophantic:
        return asked, answer(guess, style)
    slipped = rng.random() < latents.slips
    return asked, answer(item.answers[Persona.CARELESS if slipped else persona], style)
