"""The pipeline from a recipe to a direction: answers, verdicts, fine-tunes, contrast.

Each stage writes its files to the build folder, under names with a digest of everything that they depend on. A repeated
run reuses them, an interrupted run resumes, and outdated files are never used.
"""

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from weightwatch.vectors.building import answers as answering
from weightwatch.vectors.building import verdicts as judging
from weightwatch.vectors.building.answers import SIDES, Answer, Ask, Sampling, Side
from weightwatch.vectors.building.base_model import BaseModel
from weightwatch.vectors.building.contrast import Built, contrasted, joined
from weightwatch.vectors.building.digest import digest
from weightwatch.vectors.building.examples import MIN_PAIRS, Examples, paired, require_enough, split
from weightwatch.vectors.building.fine_tunes import Behind, FineTune, Losses, Training, best, checkpoint
from weightwatch.vectors.building.ledger import Ledger
from weightwatch.vectors.building.output import only_build
from weightwatch.vectors.building.pilot import Pilot
from weightwatch.vectors.building.verdicts import Judged
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.generation import Progress, load_model
from weightwatch.vectors.judges.judge import Judge, Judgement
from weightwatch.vectors.recipes.recipe import Recipe
from weightwatch.vectors.recipes.verdicts import AnswersJudge, WrittenJudge

SEEDS = (9001, 9002, 9003)
"""Seeds that a watched run is unlikely to use. A run with the same seed starts from the same LoRA adapter, and that
raises every cosine."""

_RECORDED = {
    "num_samples": "samples",
    "max_new_tokens": "tokens",
    "num_train_epochs": "epochs",
    "batch_size": "batch",
    "micro_batch_size": "at_once",
}
"""Keys of settings in cards and digests, where they differ from the names of the fields."""


@dataclass(frozen=True)
class Settings:
    """How a direction is built.

    Attributes:
        sampling: How the answers are sampled.
        training: How the fine-tunes are trained.
        seeds: Seeds of the fine-tunes. Each seed starts LoRA from another random A, whose row space limits what the
            fine-tune can learn; the direction is the mean over the seeds. A watched run must use another seed.
        validation: Share of the questions in the validation set, which decides on learning rate and step.
        min_pairs: Smallest number of pairs of answers to build from.
        pilot: Whether a long draw stops after its first answers, if they promise fewer pairs than ``min_pairs``.
        trust_remote_code: Whether to run the Python code that comes with the base model.
        behind: The guard that the fine-tunes are trained behind; None for none. See ``weightwatch.callbacks.behind``.
    """

    sampling: Sampling = field(default_factory=Sampling)
    training: Training = field(default_factory=Training)
    seeds: tuple[int, ...] = SEEDS
    validation: float = 0.15
    min_pairs: int = MIN_PAIRS
    pilot: bool = True
    trust_remote_code: bool = False
    behind: Behind | None = None

    def name(self, recipe: Recipe) -> str:
        """Return the name of the direction that is built from a recipe.

        A witness is watched beside the direction that it was built behind, so it has a name of its own.
        """
        return recipe.name if self.behind is None else f"{recipe.name}-behind"


def build(
    recipe: Recipe,
    model: str,
    folder: Path,
    judge: Judge,
    settings: Settings | None = None,
    progress: Progress | None = None,
    base_name: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Built:
    """Build a direction from a recipe.

    Args:
        recipe: The recipe.
        model: The base model: a folder, or a Hub id.
        folder: The build folder.
        judge: Rates the answers; those that show their side are kept.
        settings: How to build. Default: the paper's settings.
        progress: Called as the stages advance.
        base_name: Name of the base model in cards. Default: ``model``.
        say: Called with the yield of the pilot. Default: it is not said.

    Returns:
        The direction, and the directions of the single seeds.

    Raises:
        WeightWatchError: There is no such model, it is an adapter or has no chat template; the judge can't be reached;
            the pilot promises too few pairs; too few answers are kept; no loss is finite; the two fine-tunes are nearly
            equal; a seed is given twice; a learning rate is not above zero; the guard can't be exact; or another
            process is building in the folder.

    Source: Fierro & Roger, *Steering Language Models with Weight Arithmetic*, arXiv 2511.05408, section 2.
    """
    settings, progress = settings or Settings(), progress or (lambda stage, done, total: None)
    _validate(settings)
    base = BaseModel.find(model, base_name or model)
    with only_build(folder):
        if settings.pilot:
            _piloted(recipe, base, folder, judge, settings, progress, say or (lambda text: None))
        answers = _answers(recipe, base, folder, settings, progress)
        kept, record = _judged(recipe, answers, folder, judge, progress)
        pairs = paired(recipe, answers, kept, settings.sampling.seed)
        require_enough(recipe, pairs, answers, kept, settings.min_pairs, record)
        data = split(pairs, settings.validation, settings.sampling.seed)
        return _fine_tuned(recipe, base, folder, data, judge.name, settings, progress)


def _validate(settings: Settings) -> None:
    twice = next((seed for seed in settings.seeds if settings.seeds.count(seed) > 1), None)
    if twice is not None:
        raise WeightWatchError(f"Seed {twice} is given twice, but each seed counts once. Pass different seeds.")
    rate = next((rate for rate in settings.training.learning_rates if not rate > 0), None)
    if rate is not None:
        raise WeightWatchError(f"The learning rate {rate:g} is not above zero. Pass another --learning-rate.")


def _recorded(settings: Sampling | Training) -> dict[str, Any]:
    """Return settings as they are recorded in cards and digests; lists that are empty are left out."""
    return {_RECORDED.get(name, name): value for name, value in asdict(settings).items() if value != ()}


def _piloted(
    recipe: Recipe,
    base: BaseModel,
    folder: Path,
    judge: Judge,
    settings: Settings,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Draw and judge the pilot of a long draw that has not gone further yet, and stop if it promises too little."""
    first, batches = answering.pilot(recipe, settings.sampling), answering.asks(recipe, settings.sampling)
    early = {ask for batch in first for ask in batch}
    if not first or any(answer.key not in early for answer in _record(recipe, base, folder, settings.sampling)):
        return
    answers = _answers(recipe, base, folder, settings, progress, first)
    kept, _ = _judged(recipe, answers, folder, judge, progress, "pilot verdicts")
    found = Pilot.of(recipe, answers, kept, Counter(side for batch in batches for side, *_ in batch))
    say(str(found))
    found.require(settings.min_pairs)


def _record(recipe: Recipe, base: BaseModel, folder: Path, sampling: Sampling) -> Ledger[Answer]:
    settings = _recorded(sampling)
    del settings["samples"]  # more samples are added to the same file
    depends = [base.identity, recipe.systems.model_dump(), [q.text for q in recipe.questions.building], settings]
    return answering.ledger(folder / f"answers-{digest(depends)}.jsonl")


def _answers(
    recipe: Recipe,
    base: BaseModel,
    folder: Path,
    how: Settings,
    progress: Progress,
    pilot: list[list[Ask]] | None = None,
) -> list[Answer]:
    """Return the written answers, and those that the model gives or has given, to the pilot or to all asks."""
    sampling, stage = how.sampling, "pilot" if pilot else "answers"
    record = _record(recipe, base, folder, sampling)
    batches = pilot or answering.asks(recipe, sampling)
    asks = [ask for batch in batches for ask in batch]
    found = {answer.key: answer for answer in record}
    wanted = [batch for batch in batches if any(ask not in found for ask in batch)]
    if wanted:
        done = sum(ask in found for ask in asks)
        model, tokenizer = load_model(base.path, trust_remote_code=how.trust_remote_code)
        progress(stage, done, len(asks))
        for batch in answering.drawn(recipe, model, tokenizer, sampling, wanted):
            new = [answer for answer in batch if answer.key not in found]
            record.extend(new)
            found.update((answer.key, answer) for answer in new)
            done += len(new)
            progress(stage, done, len(asks))
        del model
        _free()
    return [*answering.written(recipe), *(found[ask] for ask in asks)]


def _judged(
    recipe: Recipe,
    answers: Sequence[Answer],
    folder: Path,
    judge: Judge,
    progress: Progress,
    stage: str = "verdicts",
) -> tuple[dict[Judged, Judgement], Path]:
    """Return the judgement of each answer, and the file that records them.

    Answers without a verdict are asked about again: the judge may have been set up better since.
    """
    questions = recipe.questions.building
    depends: list[Any] = [judge.identity, recipe.judge.model_dump()]
    if isinstance(recipe.judge, AnswersJudge | WrittenJudge):
        depends.append([question.model_dump() for question in questions])
    record = judging.ledger(folder / f"verdicts-{digest(depends)}.jsonl", judging.made_for(questions, answers))
    found = dict(record)
    cases = {(questions[answer.question].text, answer.text): questions[answer.question] for answer in answers}
    judged = {case for case, judgement in found.items() if judgement.verdict != "unjudged"}
    wanted = [(question, text) for (_, text), question in cases.items() if (question.text, text) not in judged]
    done = len(cases) - len(wanted)
    if wanted:
        progress(stage, done, len(cases))
    with closing(judging.judged(judge, wanted)) as batches:
        for batch in batches:
            record.extend(batch)
            found.update(batch)
            done += len(batch)
            progress(stage, done, len(cases))
    return found, record.path


def _fine_tuned(
    recipe: Recipe,
    base: BaseModel,
    folder: Path,
    data: tuple[Examples, Examples],
    judge: str,
    settings: Settings,
    progress: Progress,
) -> Built:
    """Train both sides for each seed, and return their contrasts."""
    training, (learn, validate) = settings.training, data
    trained, name = _recorded(training), settings.name(recipe)
    del trained["learning_rates"]
    if settings.behind is not None:
        trained["guard"] = dict(settings.behind.described)
    runs = folder / f"fine-tunes-{digest([base.identity, learn, validate, trained])}"

    def place(seed: int, rate: float) -> dict[Side, Path]:
        return {side: runs / f"seed-{seed}-rate-{rate}" / side for side in SIDES}

    def sides(seed: int, rate: float) -> list[Losses]:
        return [
            FineTune(
                base.path,
                learn[side],
                validate[side],
                training,
                rate,
                seed,
                path,
                settings.trust_remote_code,
                settings.behind,
            ).run(progress)
            for side, path in place(seed, rate).items()
        ]

    tried = {rate: sides(settings.seeds[0], rate) for rate in training.learning_rates}
    rate, step = best(tried)
    losses = {settings.seeds[0]: tried[rate], **{seed: sides(seed, rate) for seed in settings.seeds[1:]}}

    def metadata(seed: int) -> dict[str, Any]:
        return {
            "kind": recipe.kind,
            "shuffled": recipe.shuffled is not None,
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
                "answers": _recorded(settings.sampling),
            },
            "data_hash": digest([learn, validate], length=64),
        }

    seeds = [
        contrasted(
            *(checkpoint(path, step) for path in place(seed, rate).values()),
            base=base.path,
            name=name if len(settings.seeds) == 1 else f"{name}-seed-{seed}",
            metadata=metadata(seed),
        )
        for seed in settings.seeds
    ]
    return joined(seeds, name)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
