"""Options of ``weightwatch build``, in the groups that its help shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightwatch.cli.options import finite

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.preferences import Preferences


def _option(group: str, text: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=group, **settings)


RecipeName = Annotated[str | None, typer.Argument(help="A packaged recipe, or the path of a YAML file.")]
Model = Annotated[str, typer.Option(help="Base model: a folder, a Hub id, organism or smollm2.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the direction. Default: directions/<recipe>, with --guard directions/<recipe>-behind."
    ),
]

_PAIRS = "In place of a recipe: pairs"
PairsFile = Annotated[
    Path | None,
    _option(_PAIRS, "JSONL file of prompts with two answers, as DPOTrainer reads it.", "--pairs"),
]
Shows = Annotated[str | None, _option(_PAIRS, "Column that shows the behaviour: rejected, chosen, or any other.")]
Against = Annotated[
    str | None, _option(_PAIRS, "Column that shows its opposite. Default: the other of chosen and rejected.")
]
HeldOut = Annotated[
    list[str] | None,
    _option(_PAIRS, "Value of the column domain to hold out; may be repeated. Default: a random fifth of the prompts."),
]
Name = Annotated[str | None, _option(_PAIRS, "Name of the direction. Default: the file's.")]

_ANSWERS = "Answers"
NumSamples = Annotated[int, _option(_ANSWERS, "Number of answers per question and system prompt.", min=1)]
MaxNewTokens = Annotated[int, _option(_ANSWERS, "Maximum length of an answer in tokens.", min=1)]
Temperature = Annotated[float, _option(_ANSWERS, "Sampling temperature.", callback=finite, min=0)]
GenerationBatchSize = Annotated[int, _option(_ANSWERS, "Number of answers generated at once.", min=1)]
MinPairs = Annotated[int, _option(_ANSWERS, "Smallest number of pairs of answers to build from.", min=1)]

_FINE_TUNES = "Fine-tunes"
Seeds = Annotated[
    list[int],
    _option(
        _FINE_TUNES,
        "Seed of a pair of fine-tunes; may be repeated. A watched run must use another seed.",
        "--seed",
    ),
]
NoPilot = Annotated[
    bool, _option(_ANSWERS, "Draw all answers, even if the first promise fewer than --min-pairs.", "--no-pilot")
]
Rank = Annotated[int, _option(_FINE_TUNES, "LoRA rank.", min=1)]
Alpha = Annotated[int, _option(_FINE_TUNES, "LoRA alpha.", min=1)]
LearningRates = Annotated[
    list[float], _option(_FINE_TUNES, "Learning rate to try; may be repeated.", "--learning-rate", callback=finite)
]
NumTrainEpochs = Annotated[
    float, _option(_FINE_TUNES, "Number of passes over the kept answers.", callback=finite, min=0.01)
]
BatchSize = Annotated[int, _option(_FINE_TUNES, "Number of examples per optimizer step.", min=1)]
MicroBatchSize = Annotated[int, _option(_FINE_TUNES, "Number of examples per forward pass.", min=1)]
Evaluations = Annotated[
    int, _option(_FINE_TUNES, "How often a fine-tune is saved and its validation loss measured.", min=1)
]
Full = Annotated[bool, _option(_FINE_TUNES, "Train all weights instead of LoRA.", "--full")]
ModulesToSave = Annotated[
    list[str] | None,
    _option(
        _FINE_TUNES,
        "Module to train whole beside LoRA, such as embed_tokens or lm_head; may be repeated. The direction has it "
        "whole, too.",
    ),
]
Positive = Annotated[
    list[Path] | None,
    _option(_FINE_TUNES, "Existing fine-tune that learned the behaviour, instead of a new one; may be repeated."),
]
Negative = Annotated[
    list[Path] | None,
    _option(_FINE_TUNES, "Existing fine-tune that learned the opposite; as many as --positive, in the same order."),
]
Guard = Annotated[
    Path | None,
    _option(
        _FINE_TUNES,
        "Settings with a guard, as weightwatch.yaml. Both sides are trained behind it, which gives a witness.",
    ),
]
Compress = Annotated[
    int | None,
    _option(
        _FINE_TUNES,
        "Keep only so many singular values of each tensor of the direction, in bf16, for a small file. Default: all.",
        min=1,
    ),
]
NumControls = Annotated[
    int,
    _option(
        _FINE_TUNES,
        "Build so many controls with shuffled labels, too, into the subfolder controls. A watched run compares with "
        "them. Default: 0.",
        min=0,
    ),
]

_CHECK = "Check"
NoCheck = Annotated[bool, _option(_CHECK, "Do not evaluate the direction.", "--no-check")]
CardAsJson = Annotated[bool, typer.Option("--json", help="Print the direction's card as JSON, and nothing else.")]


def exclusive(given: bool, names: str, others: Mapping[str, object]) -> None:
    """Refuse options that have no effect beside others.

    Args:
        given: Whether the others are given.
        names: Their names.
        others: The values of the options that have no effect then, by name.

    Raises:
        WeightWatchError: One of them is given.
    """
    from weightwatch.vectors.errors import WeightWatchError

    useless = next((option for option, value in others.items() if value), None)
    if given and useless is not None:
        raise WeightWatchError(f"{useless} has no effect beside {names}. Leave out either.")


def preferences(
    recipe: str | None,
    pairs: Path | None,
    shows: str | None,
    against: str | None,
    held_out: list[str] | None,
    name: str | None,
) -> "Preferences | None":
    """Return the file of pairs to build from, or None if there is a recipe.

    Raises:
        WeightWatchError: There are both or neither, or options are missing or of no effect.
    """
    from weightwatch.vectors.errors import WeightWatchError
    from weightwatch.vectors.recipes.preferences import Preferences

    if (recipe is None) == (pairs is None):
        found = "There is neither a recipe nor --pairs" if recipe is None else "There are both a recipe and --pairs"
        raise WeightWatchError(f"{found}. Name a recipe, or pass --pairs with a file of prompts and answers.")
    if pairs is None:
        only = {"--shows": shows, "--against": against, "--held-out": held_out, "--name": name}
        exclusive(True, "a recipe", only)
        return None
    if shows is None:
        raise WeightWatchError(
            "Which answers show the behaviour? Pass --shows with the name of their column, such as rejected."
        )
    return Preferences(pairs, shows, against, tuple(held_out or []), name)
