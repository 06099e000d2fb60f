"""``weightwatch build``: a direction from a recipe, or from a file of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightwatch.cli import build_options as options
from weightwatch.cli.options import Coefficients, Controls, FullCheck, JudgeModel, JudgeName, TrustRemoteCode
from weightwatch.cli.pace import Pace
from weightwatch.report.console import console

if TYPE_CHECKING:
    from rich.console import Console

    from weightwatch.vectors.building.pipeline import Settings
    from weightwatch.vectors.building.plan import Plan
    from weightwatch.vectors.direction import Direction
    from weightwatch.vectors.generation import Progress
    from weightwatch.vectors.judges.judge import Judge
    from weightwatch.vectors.recipes.recipe import Recipe


def build(
    model: options.Model,
    recipe: options.RecipeName = None,
    output: options.Output = None,
    pairs: options.PairsFile = None,
    shows: options.Shows = None,
    against: options.Against = None,
    held_out: options.HeldOut = None,
    name: options.Name = None,
    judge: JudgeName = "rule",
    judge_model: JudgeModel = None,
    num_samples: options.NumSamples = 4,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 1.0,
    generation_batch_size: options.GenerationBatchSize = 32,
    min_pairs: options.MinPairs = 32,
    no_pilot: options.NoPilot = False,
    seed: options.Seeds = [9001, 9002, 9003],  # noqa: B006
    rank: options.Rank = 32,
    alpha: options.Alpha = 16,
    learning_rate: options.LearningRates = [5e-5, 1e-4, 2e-4],  # noqa: B006
    num_train_epochs: options.NumTrainEpochs = 1.0,
    batch_size: options.BatchSize = 16,
    micro_batch_size: options.MicroBatchSize = 4,
    evaluations: options.Evaluations = 5,
    full: options.Full = False,
    modules_to_save: options.ModulesToSave = None,
    positive: options.Positive = None,
    negative: options.Negative = None,
    guard: options.Guard = None,
    compress: options.Compress = None,
    num_controls: options.NumControls = 0,
    no_check: options.NoCheck = False,
    full_check: FullCheck = False,
    coefficient: Coefficients = None,
    control: Controls = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: options.CardAsJson = False,
) -> None:
    """Build a direction from a recipe or from pairs, and evaluate it. The same command resumes an interrupted build."""
    screen, notes = console(stderr=as_json), console(stderr=True)
    with screen.status("loading torch, transformers and trl"):
        from weightwatch.callbacks.behind import behind
        from weightwatch.cli.base_model import base_model
        from weightwatch.vectors.building.answers import Sampling
        from weightwatch.vectors.building.fine_tunes import Training
        from weightwatch.vectors.building.output import STAGES, output_folder
        from weightwatch.vectors.building.pipeline import Settings
        from weightwatch.vectors.recipes.recipe import Recipe
    made_already = bool(positive or negative)
    options.exclusive(made_already, "--positive and --negative", {"--guard": guard, "--num-controls": num_controls})
    options.exclusive(full, "--full", {"--compress": compress, "--modules-to-save": modules_to_save})
    checks = {"--full-check": full_check, "--coefficient": coefficient, "--control": control}
    options.exclusive(no_check, "--no-check", checks)
    source = options.preferences(recipe, pairs, shows, against, held_out, name)
    wanted = source.recipe() if source else Recipe.load(str(recipe))
    base_name, base = base_model(model)
    check = None if no_check else _Check.of(wanted, coefficient, control or [], full=full_check)
    settings = Settings(
        sampling=Sampling(num_samples, max_new_tokens, temperature, generation_batch_size),
        training=Training(
            rank,
            alpha,
            tuple(learning_rate),
            num_train_epochs,
            batch_size,
            micro_batch_size,
            evaluations=evaluations,
            full=full,
            modules_to_save=tuple(modules_to_save or ()),
        ),
        seeds=tuple(seed),
        min_pairs=min_pairs,
        pilot=not no_pilot,
        trust_remote_code=trust_remote_code,
        behind=behind(guard) if guard is not None else None,
    )
    folder = output_folder(wanted, base_name, output, behind=guard is not None)
    if source:
        wanted = source.save(folder / STAGES)
    job = _Job(wanted, base, base_name, settings, folder, compress, (judge, judge_model))
    if made_already:
        direction = _from_fine_tunes(positive or [], negative or [], job, check, notes)
    else:
        direction = _from_answers(num_controls, job, check, notes)
    _finish(direction, job, screen, as_json=as_json)


@dataclass(frozen=True)
class _Job:
    """What is built, on which base, how, and where to."""

    recipe: "Recipe"
    base: str
    base_name: str
    settings: "Settings"
    folder: Path
    compress: int | None
    judge: tuple[str, str | None]
    """The judge's name, and that of its model; it is loaded when the stages have begun."""


@dataclass(frozen=True)
class _Check:
    """How the direction is evaluated."""

    coefficients: Sequence[float] | None
    controls: "Sequence[Direction]"
    quick: bool

    @classmethod
    def of(
        cls, recipe: "Recipe", coefficients: Sequence[float] | None, controls: Sequence[str], *, full: bool
    ) -> "_Check":
        """Validate the options of the check, before anything is built."""
        import torch

        from weightwatch.vectors.evaluation.evaluate import load_controls
        from weightwatch.vectors.evaluation.sweep import require_coefficients

        if coefficients is not None:
            require_coefficients(coefficients, recipe)
        return cls(coefficients, load_controls(controls), quick=not (full or torch.cuda.is_available()))


def _from_fine_tunes(
    positive: Sequence[Path], negative: Sequence[Path], job: _Job, check: _Check | None, notes: "Console"
) -> "Direction":
    """Build the direction from existing fine-tunes, save it and evaluate it."""
    from weightwatch.cli.progress import stages
    from weightwatch.vectors.building.contrast import of_fine_tunes
    from weightwatch.vectors.judges.choice import chosen_if_any

    with stages(notes) as progress:
        judge = chosen_if_any(job.recipe, *job.judge)
        _print_plan(None, job, check, judge, notes)
        built = of_fine_tunes(positive, negative, job.recipe, job.base, job.base_name)
        return _evaluated(_saved(built.direction, job), built.seeds, job, check, judge, progress)


def _from_answers(num_controls: int, job: _Job, check: _Check | None, notes: "Console") -> "Direction":
    """Build the direction from answers and new fine-tunes, save it, evaluate it, and build its controls."""
    from weightwatch.cli.plan import announced
    from weightwatch.cli.progress import stages
    from weightwatch.vectors.building import pipeline
    from weightwatch.vectors.building.output import STAGES
    from weightwatch.vectors.building.plan import Plan
    from weightwatch.vectors.judges.choice import chosen

    pace, folder = Pace(), job.folder / STAGES
    with stages(notes, pace) as progress:
        judge = chosen(job.recipe, *job.judge)
        plan = Plan.of(job.recipe, job.settings, num_controls)
        _print_plan(plan, job, check, judge, notes)
        told = announced(progress, pace, plan, notes)
        built = pipeline.build(job.recipe, job.base, folder, judge, job.settings, told, job.base_name, notes.print)
        direction = _evaluated(_saved(built.direction, job), built.seeds, job, check, judge, progress)
        _build_controls(num_controls, built.direction, job, judge, progress, notes)
    return direction


def _print_plan(plan: "Plan | None", job: _Job, check: _Check | None, judge: "Judge | None", notes: "Console") -> None:
    """Print what will be built, and what the check asks."""
    from weightwatch.cli.plan import table
    from weightwatch.vectors.evaluation.extent import Extent

    if check is None:
        notes.print(table(plan, None, job.settings, quick=False))
        return
    extent = Extent.of(job.recipe, check.coefficients, judged=judge is not None, quick=check.quick)
    notes.print(table(plan, extent, job.settings, quick=check.quick))


def _saved(direction: "Direction", job: _Job) -> "Direction":
    """Save the direction, compressed if that is wanted, before the evaluation, which may fail."""
    from weightwatch.report.pictures import draw
    from weightwatch.vectors.arithmetic import small

    if job.compress is not None:
        direction = small(direction, job.compress)
    draw(direction, job.folder)
    direction.save(job.folder)
    return direction


def _evaluated(
    direction: "Direction",
    seeds: "Sequence[Direction]",
    job: _Job,
    check: _Check | None,
    judge: "Judge | None",
    progress: "Progress",
) -> "Direction":
    """Return the direction with what it does to its base on its card; as it is, if no check is wanted."""
    from weightwatch.vectors.evaluation.evaluate import evaluate

    if check is None:
        return direction
    return evaluate(
        direction,
        job.recipe,
        job.base,
        coefficients=check.coefficients,
        quick=check.quick,
        judge=judge,
        seeds=seeds,
        others=check.controls,
        progress=progress,
        trust_remote_code=job.settings.trust_remote_code,
    )


def _build_controls(
    count: int, direction: "Direction", job: _Job, judge: "Judge", progress: "Progress", notes: "Console"
) -> None:
    """Build controls with shuffled labels as the direction was built, and name each as it is ready."""
    from weightwatch.vectors.building import bank

    rate = direction.card.hyperparameters["learning_rate"]
    built = bank.build(
        count, job.recipe, job.base, job.folder, judge, job.settings, rate, progress, job.base_name, job.compress
    )
    for control in built:
        notes.print(f"built {control.name}", highlight=False)


def _finish(direction: "Direction", job: _Job, screen: "Console", *, as_json: bool) -> None:
    """Show the direction, and save its card with the evaluation."""
    from weightwatch.cli.show import tell
    from weightwatch.report.pictures import draw
    from weightwatch.vectors.printable import printable

    tell(direction, screen, as_json, job.recipe)
    draw(direction, job.folder)
    direction.save_card(job.folder)
    screen.print(f"The direction is in {printable(job.folder)}. Use this path to watch it.", soft_wrap=True)
