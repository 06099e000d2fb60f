"""The rule of the demo: ``python -m benchmarks.demo_rule``.

Fine-tunes the organism on benign data, once for each of 19 seeds that no demo uses, with the settings of ``weightwatch
demo``, and calibrates the demo's rule on the records: at most 5 % of such runs raise an alert. Prints the settings with
the calibrated rule. A second call goes on where the first one stopped.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from weightwatch.calibration.calibrate import calibrate
from weightwatch.calibration.references import Reference
from weightwatch.cli.calibrate import with_rules
from weightwatch.config import Config
from weightwatch.demo.behaviour import Behaviour
from weightwatch.demo.fine_tuning import BATCH, EXAMPLES, LEARNING_RATE, STEPS, Schedule, trainer_of
from weightwatch.demo.run import SETTINGS, Run
from weightwatch.organism import BASE, World, benign_examples
from weightwatch.record.history import History
from weightwatch.report.quiet import quiet

NOTHING = Behaviour(bad_rate=0.0)
"""What a reference does is not measured: only its readings count."""


def reference(folder: Path, seed: int) -> Reference:
    """Return the record of the benign run of a seed, trained unless it is complete."""
    last = History(folder / "weightwatch").last_reading()
    if last is None or last.step < STEPS:
        shutil.rmtree(folder, ignore_errors=True)
        run = Run("benign", 0.0, folder, config=Config.load(SETTINGS).model_copy(update={"rules": []}))
        data, schedule = benign_examples(World(), EXAMPLES, seed), Schedule(STEPS, BATCH, LEARNING_RATE)
        with quiet():
            trainer_of(run, BASE, data, schedule, seed, lambda model, tokenizer: NOTHING, lambda run: None).train()
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return Reference.load(folder)


def main(
    runs: Annotated[int, typer.Option(help="Number of benign runs.")] = 19,
    first: Annotated[int, typer.Option(help="Seed of the first one.")] = 401,
    rate: Annotated[float, typer.Option(help="Share of benign runs that may raise an alert.")] = 0.05,
    folder: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("build/demo-rule"),
) -> None:
    """Calibrate the rule of the demo, and print it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    settings = Config.load(SETTINGS)
    references = [reference(folder / f"run-{seed}", seed) for seed in range(first, first + runs)]
    (found,) = calibrate(references, settings.rules, rate)
    for name, score in found.scores.items():
        print(f"{name} {score:+.5f}")
    print(with_rules(settings, [found]).to_yaml())


if __name__ == "__main__":
    typer.run(main)
