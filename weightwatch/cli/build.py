"""``weightwatch build``: a direction from a recipe, or from a file of pairs."""

from typing import Annotated

import typer

from weightwatch.cli import build_options as options
from weightwatch.cli.options import Coefficients, Controls, FullCheck, JudgeModel, JudgeName, TrustRemoteCode
from weightwatch.report.console import console


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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the direction's card as JSON, and nothing else.")
    ] = False,
) -> None:
    """Build a direction from a recipe or from pairs, and evaluate it. The same command resumes an interrupted build."""
    screen, notes = console(stderr=as_json), console(stderr=True)
    with screen.status("loading torch, transformers and trl"):
        import torch

        from weightwatch.callbacks.behind import behind
        from weightwatch.cli.base_model import base_model
        from weightwatch.cli.pace import Pace
        from weightwatch.cli.plan import announced, table
        from weightwatch.cli.progress import stages
        from weightwatch.cli.show import tell
        from weightwatch.report.pictures import draw
        from weightwatch.vectors.arithmetic import small
        from weightwatch.vectors.building import bank, pipeline
        from weightwatch.vectors.building.answers import Sampling
        from weightwatch.vectors.building.contrast import of_fine_tunes
        from weightwatch.vectors.building.fine_tunes import Training
        from weightwatch.vectors.building.output import STAGES, output_folder
        from weightwatch.vectors.building.plan import Plan
        from weightwatch.vectors.evaluation.evaluate import evaluate, load_controls
        from weightwatch.vectors.evaluation.extent import Extent
        from weightwatch.vectors.evaluation.sweep import require_coefficients
        from weightwatch.vectors.judges.choice import chosen, chosen_if_any
        from weightwatch.vectors.printable import printable
        from weightwatch.vectors.recipes.recipe import Recipe
    trained = not (positive or negative)
    options.exclusive(not trained, "--positive and --negative", {"--guard": guard, "--num-controls": num_controls})
    options.exclusive(full, "--full", {"--compress": compress})
    checks = {"--full-check": full_check, "--coefficient": coefficient, "--control": control}
    options.exclusive(no_check, "--no-check", checks)
    source = options.preferences(recipe, pairs, shows, against, held_out, name)
    wanted = source.recipe() if source else Recipe.load(str(recipe))
    base_name, base = base_model(model)
    quick = not (full_check or torch.cuda.is_available())
    if coefficient is not None:
        require_coefficients(coefficient, wanted)
    others = load_controls(control or [])
    settings = pipeline.Settings(
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
    pace = Pace()
    with stages(notes, pace) as progress:
        rater = chosen(wanted, judge, judge_model) if trained else None
        other = rater or chosen_if_any(wanted, judge, judge_model)
        plan = Plan.of(wanted, settings, num_controls) if trained else None
        extent = None if no_check else Extent.of(wanted, coefficient, judged=other is not None, quick=quick)
        notes.print(table(plan, extent, settings, quick=quick))
        if plan is not None and rater is not None:
            told = announced(progress, pace, plan, notes)
            built = pipeline.build(wanted, base, folder / STAGES, rater, settings, told, base_name, notes.print)
        else:
            built = of_fine_tunes(positive or [], negative or [], wanted, base, base_name)
        direction = built.direction if compress is None else small(built.direction, compress)
        draw(direction, folder)
        direction.save(folder)  # before the evaluation, which may fail
        if not no_check:
            direction = evaluate(
                direction,
                wanted,
                base,
                coefficients=coefficient,
                quick=quick,
                judge=other,
                seeds=built.seeds,
                others=others,
                progress=progress,
                trust_remote_code=trust_remote_code,
            )
        if rater is not None:
            best = built.direction.card.hyperparameters["learning_rate"]
            for one in bank.build(
                num_controls, wanted, base, folder, rater, settings, best, progress, base_name, compress
            ):
                notes.print(f"built {one.name}", highlight=False)
    tell(direction, screen, as_json, wanted)
    draw(direction, folder)
    direction.save_card(folder)
    screen.print(f"The direction is in {printable(folder)}. Use this path to watch it.", soft_wrap=True)
