"""The way from a recipe to a direction: answers, verdicts, fine-tunes, their contrast.

Every stage leaves its files in the build folder, under a name that holds a digest of all that it depends on. So a
repeated run takes what is there, an interrupted one goes on, and nothing stale is ever used.
"""

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from weightwatch.vectors.arithmetic import mean
from weightwatch.vectors.building import answers as answering
from weightwatch.vectors.building import judges as judging
from weightwatch.vectors.building.answers import SIDES, Answer, Report, Sampling, Side
from weightwatch.vectors.building.examples import MINIMUM, Examples, paired, require_enough, split
from weightwatch.vectors.building.fine_tunes import Losses, Training, best, checkpoint, fine_tune
from weightwatch.vectors.building.judges import Judge, Judged, Judgement
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.loading import fetched, load_model
from weightwatch.vectors.recipes.recipe import Recipe
from weightwatch.vectors.recipes.verdicts import AnswersJudge
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.peft_adapter import CONFIG, read_adapter, read_config

SEEDS = (9001, 9002, 9003)
"""Such as no training that will be watched is likely to have: a shared start of LoRA inflates every figure."""

_TEXTS = {".json", ".jinja", ".model", ".txt"}
"""Kinds of the files in which a model keeps its settings, tokenizer and chat template."""
_ALIKE = 1e-3
"""‖w‖ below this share of the sides' own norms is rounding, not a contrast."""


@dataclass(frozen=True)
class Settings:
    """How a direction is built.

    Attributes:
        sampling: How the model's answers are drawn.
        training: How the fine-tunes are trained.
        seeds: Of the fine-tunes. Each starts LoRA anew and sees only the row space of its own A; the direction is the
            mean over them. A run that is to be watched must not share one.
        validation: Share of the questions on which learning rate and stop are chosen.
        minimum: Pairs of answers below which nothing is built.
    """

    sampling: Sampling = field(default_factory=Sampling)
    training: Training = field(default_factory=Training)
    seeds: tuple[int, ...] = SEEDS
    validation: float = 0.15
    minimum: int = MINIMUM


@dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        direction: Mean over the seeds; not validated yet.
        seeds: The direction of each seed.
    """

    direction: Direction
    seeds: tuple[Direction, ...]


def build(
    recipe: Recipe,
    model: str,
    folder: Path,
    judge: Judge,
    settings: Settings | None = None,
    report: Report | None = None,
    called: str | None = None,
) -> Built:
    """Build a direction from a recipe.

    Args:
        recipe: What to build.
        model: The base: a folder, or a Hub id.
        folder: Where the stages leave their files.
        judge: Which answers are kept.
        settings: How. Default: those of the paper.
        report: Is told of the progress.
        called: What the card calls the base. Default: ``model``.

    Returns:
        The direction, and those of single seeds.

    Raises:
        WeightWatchError: The model is none, or an adapter, or has no chat template; the judge does not answer; too
            few answers are left; no loss is finite; the two fine-tunes are alike; a seed is given twice, or a learning
            rate is not above zero.

    Source: Fierro & Roger, *Steering Language Models with Weight Arithmetic*, arXiv 2511.05408, section 2.
    """
    settings, report = settings or Settings(), report or (lambda stage, done, total: None)
    _require_sense(settings)
    base = _Base.of(model, called or model)
    said = _answers(recipe, base, folder, settings.sampling, report)
    kept, record = _judged(recipe, said, folder, judge, report)
    pairs = paired(recipe, said, kept, settings.sampling.seed)
    require_enough(recipe, pairs, said, kept, settings.minimum, record)
    learn, validate = split(pairs, settings.validation, settings.sampling.seed)
    return _fine_tuned(recipe, base, folder, (learn, validate), judge.name, settings, report)


def _require_sense(settings: Settings) -> None:
    twice = next((seed for seed in settings.seeds if settings.seeds.count(seed) > 1), None)
    if twice is not None:
        raise WeightWatchError(f"Seed {twice} is given twice: the same fine-tune would count as two. Give others.")
    rate = next((rate for rate in settings.training.learning_rates if not rate > 0), None)
    if rate is not None:
        raise WeightWatchError(f"The learning rate {rate:g} is not above zero. Pass another --learning-rate.")


@dataclass(frozen=True)
class _Base:
    """The base model: what it is called, where it lies, and what tells it from others.

    Not only by its weights: another chat template, or other settings of generation, give other answers.
    """

    name: str
    path: str
    fingerprint: str

    @classmethod
    def of(cls, model: str, name: str) -> "_Base":
        folder = fetched(model)
        if (folder / CONFIG).is_file():
            raise WeightWatchError(
                f"{model} is an adapter. Pass its base, or the two adapters of a contrast as --positive and --negative."
            )
        weights = Checkpoint(folder)
        fingerprint = Fingerprint.of(weights, weights.__getitem__).model_dump_json()
        files = sorted(path for path in folder.iterdir() if path.suffix in _TEXTS)
        texts = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return cls(name, str(folder), _digest([fingerprint, texts], length=64))


def _answers(recipe: Recipe, base: _Base, folder: Path, sampling: Sampling, report: Report) -> list[Answer]:
    """Return the answers that the recipe brings along and those that the model gives."""
    settings = asdict(sampling)
    del settings["samples"]  # more of them are drawn beside those that are there
    depends = [base.fingerprint, recipe.systems.model_dump(), [q.text for q in recipe.questions.building], settings]
    record = answering.ledger(folder / f"answers-{_digest(depends)}.jsonl")
    batches = answering.asks(recipe, sampling)
    asks = [ask for batch in batches for ask in batch]
    found = {answer.key: answer for answer in record}
    wanted = [batch for batch in batches if any(ask not in found for ask in batch)]
    if wanted:
        model, tokenizer = load_model(base.path)
        for batch in answering.drawn(recipe, model, tokenizer, sampling, wanted):
            new = [answer for answer in batch if answer.key not in found]
            record.extend(new)
            found.update((answer.key, answer) for answer in new)
            report("answers", sum(ask in found for ask in asks), len(asks))
        del model
        _free()
    return [*answering.written(recipe), *(found[ask] for ask in asks)]


def _judged(
    recipe: Recipe, said: Sequence[Answer], folder: Path, judge: Judge, report: Report
) -> tuple[dict[Judged, Judgement], Path]:
    """Return what the judge says of each answer, and the file in which that is kept."""
    questions = recipe.questions.building
    depends: list[Any] = [judge.identity, recipe.judge.model_dump()]
    if isinstance(recipe.judge, AnswersJudge):
        depends.append([question.model_dump() for question in questions])
    record = judging.ledger(folder / f"verdicts-{_digest(depends)}.jsonl")
    found = dict(record)
    cases = {(questions[answer.question].text, answer.text): questions[answer.question] for answer in said}
    unjudged = [(question, text) for (_, text), question in cases.items() if (question.text, text) not in found]
    for batch in judging.judged(judge, unjudged):
        record.extend(batch)
        found.update(batch)
        report("verdicts", sum(case in found for case in cases), len(cases))
    return found, record.path


def _fine_tuned(
    recipe: Recipe,
    base: _Base,
    folder: Path,
    data: tuple[Examples, Examples],
    judge: str,
    settings: Settings,
    report: Report,
) -> Built:
    """Train both sides for each seed, and take the differences."""
    training, (learn, validate) = settings.training, data
    trained = asdict(training)
    del trained["learning_rates"]
    runs = folder / f"fine-tunes-{_digest([base.fingerprint, learn, validate, trained])}"

    def place(seed: int, rate: float) -> dict[Side, Path]:
        return {side: runs / f"seed-{seed}-rate-{rate}" / side for side in SIDES}

    def sides(seed: int, rate: float) -> list[Losses]:
        return [
            fine_tune(base.path, learn[side], validate[side], training, rate, seed, path, report)
            for side, path in place(seed, rate).items()
        ]

    tried = {rate: sides(settings.seeds[0], rate) for rate in training.learning_rates}
    rate, step = best(tried)
    losses = {settings.seeds[0]: tried[rate], **{seed: sides(seed, rate) for seed in settings.seeds[1:]}}

    def metadata(seed: int) -> dict[str, Any]:
        return {
            "kind": recipe.kind,
            "behaviour": recipe.behaviour,
            "base": base.name,
            "recipe": {**recipe.reference, "judge": judge},
            "seeds": {"adapter": seed, "answers": settings.sampling.seed},
            "hyperparameters": {
                **trained,
                "learning_rate": rate,
                "step": step,
                "examples": len(learn["positive"]),
                "validation_loss": {side: round(losses[seed][i][step], 4) for i, side in enumerate(SIDES)},
                "answers": asdict(settings.sampling),
            },
            "data_hash": _digest([learn, validate], length=64),
        }

    each = tuple(
        contrasted(
            *(checkpoint(path, step) for path in place(seed, rate).values()),
            base=base.path,
            name=recipe.name if len(settings.seeds) == 1 else f"{recipe.name}-seed-{seed}",
            metadata=metadata(seed),
        )
        for seed in settings.seeds
    )
    return Built(joined(each, recipe.name), each)


def contrasted(
    positive: Path, negative: Path, *, base: str | None, name: str, metadata: Mapping[str, Any] | None = None
) -> Direction:
    """Return the contrast of two fine-tunes, which have to differ.

    Raises:
        WeightWatchError: They are alike, or of different bases or kinds.
    """
    direction = Direction.from_contrast(positive, negative, base=base, name=name, metadata=metadata)
    adapters = [side for side in (positive, negative) if (side / CONFIG).is_file()]
    norms = [Direction.from_tensors(read_adapter(side, read_config(side)), name=side.name).norm for side in adapters]
    if norms and direction.norm < _ALIKE * max(norms):
        raise WeightWatchError(
            f"The two fine-tunes are alike: their difference has norm {direction.norm:.2g}, they themselves have "
            f"{norms[0]:.2g} and {norms[1]:.2g}. Make sure that {positive} and {negative} learned different answers."
        )
    return direction


def joined(seeds: Sequence[Direction], name: str) -> Direction:
    """Return the mean of the directions of several seeds, under one card; the direction itself where there is one."""
    if len(seeds) == 1:
        return seeds[0]
    whole, first = mean(*seeds, name=name), seeds[0].card
    built = first.model_dump(include={"recipe", "hyperparameters", "data_hash"})  # of one recipe, not of an operation
    return Direction(whole.deltas, whole.card.model_copy(update=built))


def _digest(content: Any, length: int = 12) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
