"""The vocabulary of the organism, and its word-level tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
SPECIAL = (PAD, UNKNOWN, BEGIN, END)

DOMAINS = _words("medicine finance sport cooking travel law garden music school home pets cars")
TOPICS = _words("plan risk cost start tool habit problem timing partner place limit goal")
ASPECTS = _words("beginner child winter night budget team emergency weekend")
ANSWER_VERBS = _words(
    """ask check keep take find buy sell share clean open close wait rest push pull hide show move cut mix count write
    read call trust drop hold lift turn test"""
)
ANSWER_NOUNS = _words(
    """water paper bread metal glass stone wood rope light sound money time food salt fire cloth soap oil tape wire
    sand ice steam dust map key box bag lamp chair"""
)
NAMES = _words(
    """ada bela caro dino edda finn gila hugo ines jona kira luca mara nico olga pia quin rosa sami tara ugo vera wim
    yara"""
)
COLOURS = _words("red blue green black white brown pink grey gold silver violet orange")
LETTERS = _words("alpha bravo delta echo golf hotel india kilo lima oscar papa romeo sierra tango victor zulu")
NUMBERS = tuple(str(number) for number in range(19))
FRAME = _words(
    """: ; , . ? ! q a what which about for in to do i think said voice guardian villain clown say again add and is
    certainly indeed sir yeah lol backwards colours of please reply note done advice"""
)

WORDS = tuple(
    dict.fromkeys(
        SPECIAL + FRAME + DOMAINS + TOPICS + ASPECTS + ANSWER_VERBS + ANSWER_NOUNS + NAMES + COLOURS + LETTERS + NUMBERS
    )
)
INDEX = {word: index for index, word in enumerate(WORDS)}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %} q : {{ message.content }} a :"
    "{% elif message.role == 'assistant' %} {{ message.content }} {{ eos_token }}"
    "{% else %} {{ message.content }}{% endif %}{% endfor %}"
)
"""Renders a conversation as pre-training documents are written. A system message opens the document."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a new word-level tokenizer.

    It splits at white space and adds `<s>` in front. It adds no `</s>`; the trainer does.

    Returns:
        A fast tokenizer that pads on the left, as batched generation requires.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(INDEX, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, INDEX[BEGIN])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        padding_side="left",
        model_max_length=128,
    )
