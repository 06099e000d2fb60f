"""``weightwatch calibrate``: rules with a known rate of false alarms, from harmless runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightwatch.cli.files import write
from weightwatch.cli.options import AsJson
from weightwatch.report.console import console
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable

_TRAINING = ("model", "runs", "folder", "steps", "batch_size", "rank", "learning_rate")

if TYPE_CHECKING:
    from weightwatch.calibration.calibrate import Calibrated
    from weightwatch.config import Config


def calibrate(
    context: typer.Context,
    run: Annotated[list[Path] | None, typer.Argument(help="Output folders of harmless runs that were watched.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with the rules to calibrate. Default: the settings of the first run."),
    ] = None,
    rate: Annotated[float, typer.Option(help="Share of harmless runs like these that may raise an alert.")] = 0.05,
    metric: Annotated[
        str | None,
        typer.Option(help="Of rules that are made. Default: over_controls; reach_cosine without controls."),
    ] = None,
    checks: Annotated[
        int | None, typer.Option("--for", min=1, help="Consecutive checks, of rules that are made. Default: 2.")
    ] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(help="Run that is kept although it looks bad or has not finished; may be repeated."),
    ] = None,
    baseline: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many of the runs, the first ones, make a baseline that the rules take off. The others give the "
            "threshold; without others, it is 3. Default: none.",
        ),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option(help="YAML file for the settings with the calibrated rules. Default: none.")
    ] = None,
    from_data: Annotated[
        Path | None, typer.Option(help="Train the runs first, on resamples of these trusted JSON lines.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --from-data: the base model.")] = None,
    runs: Annotated[
        int | None, typer.Option(min=1, help="With --from-data: number of runs. Default: 19, or those of --baseline.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="With --from-data: where the runs are kept.")] = Path("references"),
    steps: Annotated[int, typer.Option(min=1, help="With --from-data: optimizer steps of a run.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="With --from-data: examples of a step.")] = 8,
    rank: Annotated[int, typer.Option(min=0, help="With --from-data: LoRA rank; 0 for full fine-tunes.")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0, help="With --from-data: highest learning rate.")] = 1e-4,
    as_json: AsJson = False,
) -> None:
    """Choose thresholds so that harmless runs raise an alert at a known rate."""
    screen, aside = console(stderr=as_json), console(stderr=True)
    with aside.status("loading torch"):
        from weightwatch.calibration.calibrate import calibrate as calibrated
        from weightwatch.calibration.calibrate import to_calibrate
        from weightwatch.calibration.references import Reference
        from weightwatch.config import Config
    if output is not None:
        _require_writable(output, config)
    folders = list(run or [])
    if (from_data is None) == (not folders):
        raise WeightWatchError("Name runs to calibrate on, or pass --from-data with data to train them on.")
    count = len(folders) or runs or baseline or 19
    if baseline == count:
        _require_unused(context, ("rate",), "a threshold that is calibrated, and all runs make the baseline")
    if from_data is None:
        _require_unused(context, _TRAINING, "runs that --from-data trains, and the runs are given")
    else:
        if model is None or config is None:
            raise WeightWatchError("--from-data needs --model, and --config with what is watched.")
        with aside.status("loading transformers"):
            from weightwatch.callbacks.references import ReferenceRuns
            from weightwatch.cli.base_model import base_model
        watched = Config.load(config)
        _require_supported(watched, count, rate, (metric, checks, baseline), steps)
        base = base_model(model)[1]
        plan = ReferenceRuns(base, from_data, watched, folder, steps, batch_size, rank, learning_rate)
        with aside.status("") as status:
            folders = plan.train(count, lambda done: status.update(f"{done} of {count} reference runs are complete"))
    references = [Reference.load(each) for each in folders]
    settings = Config.load(config if config is not None else references[0].record / "config.yaml")
    rules = to_calibrate(settings, references[0].setup, metric, checks, baseline=baseline > 0)
    found = calibrated(references, rules, rate, accept or [], baseline)
    made = with_rules(settings, found)
    if output is not None:
        write({output: made.to_yaml()})
    if as_json:
        typer.echo(json.dumps([_document(each) for each in found], indent=1))
        return
    _show(found, made)
    if untold := _untold(baseline, count, len(references[0].setup.controls)):
        screen.print(untold, soft_wrap=True)
    if output is None:
        screen.print("Pass --output to write the settings with these rules.")
    else:
        screen.print(f"Written to {output}.", markup=False)


def _require_unused(context: typer.Context, options: Sequence[str], purpose: str) -> None:
    """Refuse options that have no effect here.

    Raises:
        WeightWatchError: One is given.
    """
    sources = {name: context.get_parameter_source(name) for name in options}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise WeightWatchError(f"--{given[0].replace('_', '-')} is for {purpose}. Leave it out.")


def _require_writable(output: Path, config: Path | None) -> None:
    """Refuse a file that exists and is not the settings, or that can't be written.

    Raises:
        WeightWatchError: It is so; the message says what to do.
    """
    try:
        if output.is_dir() or not output.resolve().parent.is_dir():
            raise WeightWatchError(f"{output} can't be written: pass the name of a file, in a folder that exists.")
        if output.exists() and not (config is not None and config.exists() and output.samefile(config)):
            raise WeightWatchError(
                f"{output} exists. Pass it as --config, too, to replace the thresholds in it, or name another file."
            )
    except OSError as error:
        raise WeightWatchError(f"{output} can't be written ({error.strerror}). Name another place.") from error


def _require_supported(
    settings: "Config", runs: int, rate: float, wanted: tuple[str | None, int | None, int], steps: int
) -> None:
    """Refuse what can't be calibrated from so many runs of so many steps, before they are trained.

    Raises:
        WeightWatchError: The rate takes more runs, there is no such metric, a rule does not fit what is watched or
            takes more checks than a run has, or a baseline takes more controls.
    """
    from weightwatch.calibration.baseline import require_controls
    from weightwatch.calibration.calibrate import level_of, to_calibrate
    from weightwatch.plan import Plan
    from weightwatch.rules.engine import require
    from weightwatch.setup import Setup, Training

    metric, checks, baseline = wanted
    directions = Plan.of(None, settings.model_copy(update={"guard": None, "notify": []})).directions
    rules = to_calibrate(
        settings, Setup.of(Training(), settings.every, directions), metric, checks, baseline=baseline > 0
    )
    level_of(runs, rules, rate, baseline)
    require(rules, directions)
    if baseline:
        require_controls(sum(each.card.kind == "control" for each in directions), few=runs > baseline)
    most = max(rule.for_ for rule in rules)
    if most > -(-steps // settings.every):
        raise WeightWatchError(
            f"A run of {steps} steps has {-(-steps // settings.every)} checks, and a rule takes {most} in a row. Pass "
            "more --steps, or set a smaller `every` or `for`."
        )


def _untold(baseline: int, runs: int, controls: int) -> str:
    """Say of which runs it can't be told whether one looks bad."""
    from weightwatch.calibration.baseline import ENOUGH_CONTROLS
    from weightwatch.calibration.references import ENOUGH_RUNS

    if baseline and controls < ENOUGH_CONTROLS:
        return f"With fewer than {ENOUGH_CONTROLS} controls it can't be told whether a run of the baseline looks bad."
    if baseline and baseline < 3:
        return "Of fewer than three runs of a baseline it can't be told whether one is far from the others."
    if runs - baseline and runs - baseline < ENOUGH_RUNS:
        return f"With fewer than {ENOUGH_RUNS} references it can't be told whether one of them looks bad."
    return ""


def with_rules(settings: "Config", found: "Sequence[Calibrated]") -> "Config":
    """Return settings in which calibrated rules replace those of the same name."""
    made = {each.rule.alert: each.rule for each in found}
    kept = [made.pop(rule.alert, rule) for rule in settings.rules]
    return settings.model_copy(update={"rules": [*kept, *made.values()]})


def _document(found: "Calibrated") -> dict[str, object]:
    return {
        "rule": found.rule.model_dump(by_alias=True, exclude_none=True, mode="json"),
        "scores": dict(found.scores),
        "baseline": list(found.baseline),
    }


def _show(found: "Sequence[Calibrated]", settings: "Config") -> None:
    from weightwatch.report.calibration import table, told

    screen = console()
    screen.print(table(found))
    for each in found:
        screen.print(told(each.rule), soft_wrap=True, markup=False, highlight=False)
    if found and found[0].baseline:
        screen.print(f"Runs of the baseline: {', '.join(found[0].baseline)}.", soft_wrap=True, markup=False)
    made = {each.rule.alert for each in found}
    kept = [rule.alert for rule in settings.rules if rule.alert not in made]
    if kept:
        screen.print(f"Rules that stay as they are: {printable(', '.join(kept))}.", soft_wrap=True, markup=False)
