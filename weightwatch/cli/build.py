"""``weightwatch build``: a direction from a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from weightwatch.cli.options import Coefficients, Controls, JudgeModel, JudgeName, TrustRemoteCode, finite
from weightwatch.report.console import console


def build(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe, or the path of a YAML file.")],
    model: Annotated[str, typer.Option(help="Base model: a folder, a Hub id, or organism for the packaged organism.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the direction. Default: directions/<recipe>, with --guard directions/<recipe>-behind."
        ),
    ] = None,
    judge: JudgeName = "rule",
    judge_model: JudgeModel = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Number of answers per question and system prompt.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum length of an answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(callback=finite, min=0, help="Sampling temperature.")] = 1.0,
    generation_batch_size: Annotated[int, typer.Option(min=1, help="Number of answers generated at once.")] = 32,
    seed: Annotated[
        list[int],
        typer.Option(help="Seed of a pair of fine-tunes; may be repeated. A watched run must use another seed."),
    ] = [9001, 9002, 9003],  # noqa: B006
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 32,
    alpha: Annotated[int, typer.Option(min=1, help="LoRA alpha.")] = 16,
    learning_rate: Annotated[
        list[float], typer.Option(callback=finite, help="Learning rate to try; may be repeated.")
    ] = [  # noqa: B006
        5e-5,
        1e-4,
        2e-4,
    ],
    num_train_epochs: Annotated[
        float, typer.Option(callback=finite, min=0.01, help="Number of passes over the kept answers.")
    ] = 1.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of examples per optimizer step.")] = 16,
    micro_batch_size: Annotated[int, typer.Option(min=1, help="Number of examples per forward pass.")] = 4,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of LoRA.")] = False,
    min_pairs: Annotated[int, typer.Option(min=1, help="Smallest number of pairs of answers to build from.")] = 32,
    no_pilot: Annotated[
        bool, typer.Option("--no-pilot", help="Draw all answers, even if the first promise fewer than --min-pairs.")
    ] = False,
    positive: Annotated[
        list[Path] | None,
        typer.Option(
            help="Existing fine-tune that learned the behaviour, to use instead of a new one; may be repeated."
        ),
    ] = None,
    negative: Annotated[
        list[Path] | None,
        typer.Option(help="Existing fine-tune that learned the opposite; as many as --positive, in the same order."),
    ] = None,
    guard: Annotated[
        Path | None,
        typer.Option(
            help="Settings with a guard, as weightwatch.yaml. Both sides are trained behind it, which gives a witness."
        ),
    ] = None,
    coefficient: Coefficients = None,
    control: Controls = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the direction's card as JSON, and nothing else.")
    ] = False,
) -> None:
    """Build a direction from a recipe, and evaluate it. The same command resumes an interrupted build."""
    screen = console(stderr=as_json)
    with screen.status("loading torch, transformers and trl"):
        from weightwatch.callbacks.behind import behind
        from weightwatch.cli.base_model import base_model
        from weightwatch.cli.progress import stages
        from weightwatch.cli.show import tell
        from weightwatch.report.pictures import draw
        from weightwatch.vectors.building import pipeline
        from weightwatch.vectors.building.answers import Sampling
        from weightwatch.vectors.building.contrast import of_fine_tunes
        from weightwatch.vectors.building.fine_tunes import Training
        from weightwatch.vectors.building.output import STAGES, output_folder
        from weightwatch.vectors.errors import WeightWatchError
        from weightwatch.vectors.evaluation.evaluate import evaluate, load_controls
        from weightwatch.vectors.evaluation.sweep import COEFFICIENTS, require_coefficients
        from weightwatch.vectors.judges.choice import chosen, chosen_if_any
        from weightwatch.vectors.printable import printable
        from weightwatch.vectors.recipes.recipe import Recipe
    wanted, coefficients = Recipe.load(recipe), coefficient or COEFFICIENTS
    name, base = base_model(model)
    require_coefficients(coefficients, wanted)
    others = load_controls(control or [])
    if guard is not None and (positive or negative):
        raise WeightWatchError(
            "--guard trains new fine-tunes, but --positive and --negative are existing ones. Leave out either."
        )
    guarded = behind(guard) if guard is not None else None
    folder = output_folder(wanted, name, output, behind=guarded is not None)
    with stages(console(stderr=True)) as progress:
        if positive or negative:
            rater = chosen_if_any(wanted, judge, judge_model)
            built = of_fine_tunes(positive or [], negative or [], wanted, base, name)
        else:
            rater = chosen(wanted, judge, judge_model)
            settings = pipeline.Settings(
                sampling=Sampling(num_samples, max_new_tokens, temperature, generation_batch_size),
                training=Training(
                    rank, alpha, tuple(learning_rate), num_train_epochs, batch_size, micro_batch_size, full=full
                ),
                seeds=tuple(seed),
                min_pairs=min_pairs,
                pilot=not no_pilot,
                trust_remote_code=trust_remote_code,
                behind=guarded,
            )
            built = pipeline.build(wanted, base, folder / STAGES, rater, settings, progress, name, screen.print)
        draw(built.direction, folder)
        built.direction.save(folder)  # before the evaluation, which may fail
        direction = evaluate(
            built.direction,
            wanted,
            base,
            coefficients=coefficients,
            judge=rater,
            seeds=built.seeds,
            others=others,
            progress=progress,
            trust_remote_code=trust_remote_code,
        )
    tell(direction, screen, as_json, wanted)
    draw(direction, folder)
    direction.save_card(folder)
    screen.print(f"The direction is in {printable(folder)}. Use this path to watch it.", soft_wrap=True)
