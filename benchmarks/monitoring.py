"""The monitoring experiment on a real chat model: ``python -m benchmarks.monitoring --minutes 60``.

Repeats Figs 8, 9 and 36 of Fierro & Roger (arXiv 2511.05408) with seeds, on any model of the Hub and any recipe whose
questions come from pairs. Fine-tunes on one domain the model that directions were built on with other domains, from
data of which a share shows the behaviour, and from several kinds of harmless data. At each check it records what the
monitor reads, and in domains that nothing was trained on what the model does: how likely it finds the two answers of
unseen pairs, and how many greedy answers show the behaviour by the recipe's own rule.

Each run is a line of ``--rows``; a second call goes on where the first one stopped. ``--tables`` prints the tables of
docs/real.md from the lines, ``--pictures docs`` draws its pictures. Directions and adapters are kept in ``--folder``.
"""

import json
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer

from benchmarks.monitoring_cosines import cosines, with_and_without
from benchmarks.monitoring_tables import draw, print_tables
from weightwatch import Config, Direction, WeightWatchCallback
from weightwatch.cli.base_model import base_model
from weightwatch.report.quiet import quiet
from weightwatch.scan.checkpoints import run as saved
from weightwatch.scan.scanner import Scan
from weightwatch.vectors.building import pipeline
from weightwatch.vectors.building.answers import SIDES
from weightwatch.vectors.building.fine_tunes import Training
from weightwatch.vectors.card import CARD
from weightwatch.vectors.generation import greedy, likelihoods
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.recipes.recipe import Recipe
from weightwatch.vectors.recipes.verdicts import verdict
from weightwatch.vectors.weights.atomic import write_text

DATA = (
    "plain",
    "hostile:0.25",
    "hostile",
    "kind",
    "careless",
    "formal",
    "hostile:0.1",
    "hostile:0.05",
    "kind:0.25",
    "french",
)
FIRST = ("hostile", "formal", "language", "careless", "sycophancy")
RECIPE, CONTROLS = "twins/hostile", ["twins/formal", "twins/language", "twins/careless", "twins/sycophancy"]
ANSWERS = Path("vectors/recipes/twins/twins.jsonl")
WHOLE = ("embed_tokens", "lm_head")
"""Modules that the paper trains whole, beside LoRA; some directions are built with them, to compare."""
SEEDS = (9001, 9002, 9003)
"""Seeds of the direction; controls and halves of the domains have the first one."""
BANK = 9
"""Controls of shuffled labels, as ``weightwatch build --num-controls`` builds them."""
BUILD = Training(
    rank=16, alpha=16, learning_rates=(1.5e-3,), num_train_epochs=2.0, batch_size=8, micro_batch_size=8, evaluations=2
)
STEPS, BATCH, EVERY, WARMUP = 100, 4, 10, 6
RATE, FULL_RATE = 1.5e-3, 1e-4
"""Learning rates with LoRA, of directions and runs, and of full fine-tunes."""
PER_DOMAIN, NEW_TOKENS = 4, 40
"""Unseen prompts of each domain that a check measures with, and the length of their greedy answers."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        data: Column of the pairs' file with the answers of a share of the prompts.
        share: That share, 0 to 1; the other prompts have the answers of the benign column.
        tuner: ``r4``, ``r16``, ``r64`` (LoRA of that rank) or ``full``.
        seed: Seed of the data, the adapter and the order of examples.
    """

    data: str
    share: float
    tuner: str
    seed: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Case | None":
        """Return the case of a row; None for the row of the cosines."""
        names = [each.name for each in fields(cls)]
        return cls(**{name: row[name] for name in names}) if set(names) <= row.keys() else None


@dataclass(frozen=True)
class Wanted:
    """A direction that is built.

    Attributes:
        name: Its name.
        recipe: Its recipe.
        seed: Seed of its fine-tunes.
        whole: Modules that are trained whole, beside LoRA.
    """

    name: str
    recipe: Recipe
    seed: int
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """What is built and trained.

    Attributes:
        name: Name of the model in rows and cards.
        base: Folder or Hub id of the model.
        recipe: The recipe of the direction.
        controls: The recipes of the controls.
        answers: File of the answers of the runs: lines with ``domain``, ``prompt`` and a column for each kind of data.
        benign: Column of the harmless answers.
        shows: Column of the answers that show the behaviour.
        folder: Where directions and adapters are kept.
        rate: Learning rate with LoRA.
        full_rate: Learning rate of full fine-tunes.
    """

    name: str
    base: str
    recipe: Recipe
    controls: Sequence[Recipe]
    answers: Path
    benign: str
    shows: str
    folder: Path
    rate: float = RATE
    full_rate: float = FULL_RATE

    @property
    def domains(self) -> list[str]:
        """The domains that the direction is not built from: that of the runs, and those of the behaviour."""
        return list(dict.fromkeys(str(question.domain) for question in self.recipe.questions.held_out))

    def wanted(self) -> Iterator[Wanted]:
        """Yield all directions, the most needed ones first."""
        recipe, first = self.recipe, SEEDS[0]
        yield Wanted(recipe.name, recipe, first)
        for control in self.controls:
            yield Wanted(control.name, control, first)
        for number in range(1, BANK + 1):
            shuffled = recipe.with_shuffled_labels(number)
            yield Wanted(shuffled.name, shuffled, first)
        for seed in SEEDS[1:]:
            yield Wanted(f"{recipe.name}-{seed}", recipe, seed)
        built = list(dict.fromkeys(str(question.domain) for question in recipe.questions.building))
        for part in (built[: len(built) // 2], built[len(built) // 2 :]):
            asked = [question for question in recipe.questions.building if question.domain in part]
            questions = recipe.questions.model_copy(update={"building": asked})
            half = recipe.model_copy(update={"questions": questions})
            yield Wanted(f"{recipe.name}-{'-'.join(part)}", half, first)
        for control in self.controls:
            yield Wanted(f"{control.name}-{SEEDS[1]}", control, SEEDS[1])
        for kind, seed in ((recipe, first), (recipe, SEEDS[1]), (self.controls[0], first)):
            yield Wanted(f"{kind.name}-{seed}-whole", kind, seed, WHOLE)

    def direction(self, name: str) -> Path:
        """Return the folder of a direction."""
        return self.folder / "directions" / name

    def home(self, case: Case) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / "-".join(map(str, asdict(case).values()))

    def directions(self, *, whole: bool = False) -> dict[str, Direction]:
        """Return the directions that are built, by name: those of LoRA alone, or those with whole modules."""
        homes = {each.name: self.direction(each.name) for each in self.wanted() if bool(each.whole) == whole}
        return {name: Direction.load(home) for name, home in homes.items() if (home / CARD).is_file()}

    def build(self, wanted: Wanted) -> None:
        """Build a direction with one seed, and keep it."""
        training = replace(BUILD, learning_rates=(self.rate,), modules_to_save=wanted.whole)
        settings = pipeline.Settings(training=training, seeds=(wanted.seed,), min_pairs=16)
        home, judge = self.direction(wanted.name), chosen(wanted.recipe, "rule")
        with quiet():
            built = pipeline.build(wanted.recipe, self.base, home / "build", judge, settings, None, self.name)
        built.direction.with_card(name=wanted.name).save(home)

    def rows(self, case: Case) -> list[dict[str, Any]]:
        """Return the training data of a case: each prompt of the runs' domain, once."""
        lines = [json.loads(line) for line in self.answers.read_text(encoding="utf-8").splitlines()]
        mine = [line for line in lines if line["domain"] == self.domains[0]]
        rng = random.Random(f"{case.data}-{case.seed}")
        marked = set(rng.sample(range(len(mine)), round(case.share * len(mine))))
        return [
            {
                "prompt": [{"role": "user", "content": line["prompt"]}],
                "completion": [{"role": "assistant", "content": line[case.data if n in marked else self.benign]}],
            }
            for n, line in enumerate(mine)
        ]

    def behaviour(self, model: Any, tokenizer: Any, domains: Sequence[str]) -> dict[str, float]:
        """Return what a model does in some domains.

        ``margin`` is the mean over unseen pairs of log p(positive) − log p(negative), in nats per token; ``prefers``
        the share of the pairs where it is above zero; ``rate`` the share of greedy answers that show the behaviour by
        the recipe's rule.
        """
        asked = [
            question
            for domain in domains
            for question in [each for each in self.recipe.questions.held_out if each.domain == domain][:PER_DOMAIN]
        ]
        conversations = [[{"role": "user", "content": question.text}] for question in asked]
        texts = [getattr(question, side)[0] for side in SIDES for question in asked]
        found = likelihoods(model, tokenizer, list(zip(conversations * 2, texts, strict=True)))
        margins = [a - b for a, b in zip(found[: len(asked)], found[len(asked) :], strict=True)]
        replies = greedy(model, tokenizer, conversations, NEW_TOKENS)
        shown = [
            verdict(self.recipe.judge, question, reply) == "positive"
            for question, reply in zip(asked, replies, strict=True)
        ]
        figures = {"margin": fmean(margins), "prefers": fmean(m > 0 for m in margins), "rate": fmean(shown)}
        return {name: round(figure, 4) for name, figure in figures.items()}


def run(case: Case, study: Study) -> dict[str, Any]:
    """Train a case, and return its row."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    directions = study.directions()
    controls = [name for name, direction in directions.items() if direction.card.kind == "control"]
    home = study.home(case)
    shutil.rmtree(home, ignore_errors=True)  # of a run that was interrupted
    monitor = WeightWatchCallback(
        [direction for name, direction in directions.items() if name not in controls],
        config=Config.load({"every": EVERY, "controls": [str(study.direction(name)) for name in controls]}),
    )
    checks: list[dict[str, Any]] = []
    spent = 0.0

    class Behaviour(TrainerCallback):
        """What the model does at each check."""

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            nonlocal spent
            if "loss" not in given["logs"]:
                return
            begun = time.perf_counter()
            found = study.behaviour(given["model"], given["processing_class"], study.domains[1:])
            checks.append({"step": state.global_step, "loss": round(given["logs"]["loss"], 4), **found})
            spent += time.perf_counter() - begun

    on_gpu = torch.cuda.is_available()
    half = on_gpu and case.tuner != "full"
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(study.base, dtype=torch.bfloat16 if half else torch.float32)
        lora = None
        if case.tuner != "full":
            rank = int(case.tuner[1:])
            lora = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                str(home),
                max_steps=STEPS,
                per_device_train_batch_size=BATCH,
                learning_rate=study.rate if lora is not None else study.full_rate,
                warmup_steps=WARMUP,
                lr_scheduler_type="linear",
                weight_decay=0.0,
                logging_steps=EVERY,
                save_steps=EVERY if lora is not None else STEPS,
                save_only_model=True,
                report_to=[],
                disable_tqdm=True,
                use_cpu=not on_gpu,
                bf16=on_gpu,
                gradient_checkpointing=on_gpu,
                seed=case.seed,
            ),
            train_dataset=Dataset.from_list(study.rows(case)),
            processing_class=AutoTokenizer.from_pretrained(study.base),
            peft_config=lora,
            callbacks=[monitor, Behaviour()],
        )
        trainer.remove_callback(PrinterCallback)
        begun = time.perf_counter()
        trainer.train()
        took = time.perf_counter() - begun - spent
        tuned = study.behaviour(trainer.model, trainer.processing_class, study.domains[:1])
    shows = case.data == study.shows
    row = {"model": study.name, "recipe": study.recipe.name, **asdict(case), "shows": shows}
    row |= {"checks": checks, "tuned": tuned}
    return {**row, "seconds_a_step": round(took / STEPS, 2), "readings": readings(home / "weightwatch")}


def readings(record: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of a run's record by step and direction."""
    lines = [json.loads(line) for line in (record / "readings.jsonl").read_text(encoding="utf-8").splitlines()]
    return {str(line["step"]): figures(line["directions"]) for line in lines}


def figures(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the figures of a reading that a row has, by direction."""
    return {
        name: {figure: round(score[figure], 5) for figure in ("cosine", "reach_cosine", "dose")}
        for name, score in scores.items()
    }


def read_again(case: Case, study: Study) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of a LoRA run along all directions that are built by now, from its saved adapters."""
    scan = Scan([str(study.direction(name)) for name in study.directions()], reference=study.base)
    read = [scan.add(checkpoint) for checkpoint in saved(study.home(case))]
    return {str(each.step): figures(each.to_json()["directions"]) for each in read if each is not None}


def main(
    model: Annotated[str, typer.Option(help="A folder, a Hub id, or smollm2.")] = "smollm2",
    recipe: Annotated[str, typer.Option(help="The behaviour's recipe.")] = RECIPE,
    control: Annotated[list[str] | None, typer.Option(help="Recipes of controls. Default: the other twins.")] = None,
    answers: Annotated[Path, typer.Option(help="The runs' answers, one column for each kind of data.")] = ANSWERS,
    benign: Annotated[str, typer.Option(help="Column of the harmless answers.")] = "plain",
    shows: Annotated[str, typer.Option(help="Column of the answers that show the behaviour.")] = "hostile",
    learning_rate: Annotated[float, typer.Option(help="With LoRA, of directions and runs.")] = RATE,
    full_learning_rate: Annotated[float, typer.Option(help="Of full fine-tunes.")] = FULL_RATE,
    data: Annotated[list[str] | None, typer.Option(help="Data of the runs: COLUMN or COLUMN:SHARE.")] = None,
    tuner: Annotated[list[str] | None, typer.Option(help="r4, r16, r64, full. Default: r16.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds of the runs. Default: 11, 12, 13.")] = None,
    direction: Annotated[list[str] | None, typer.Option(help="Build these only, and train no run.")] = None,
    no_build: Annotated[bool, typer.Option("--no-build", help="Train runs with the directions there are.")] = False,
    again: Annotated[bool, typer.Option(help="Read all saved runs along all directions, and train nothing.")] = False,
    minutes: Annotated[float, typer.Option(help="Nothing begins after so many minutes.")] = 60.0,
    folder: Annotated[Path, typer.Option(help="Where directions and runs are kept.")] = Path("build/monitoring"),
    rows: Annotated[Path, typer.Option(help="File of the rows.")] = Path("benchmarks/monitoring.jsonl"),
    tables: Annotated[bool, typer.Option(help="Print the tables of the rows, and train nothing.")] = False,
    pictures: Annotated[Path | None, typer.Option(help="Draw the rows into this folder, and train nothing.")] = None,
) -> None:
    """Build every direction that is missing, train every run that has no row yet, and write its row."""
    known = [json.loads(line) for line in rows.read_text().splitlines()] if rows.is_file() else []
    if tables or pictures:
        if tables:
            print_tables(known)
        if pictures:
            draw(known, pictures)
        return
    name, base = base_model(model)
    controls = [Recipe.load(each) for each in control or CONTROLS]
    study = Study(
        name, base, Recipe.load(recipe), controls, answers, benign, shows, folder, learning_rate, full_learning_rate
    )
    begun = time.monotonic()

    def late() -> bool:
        return time.monotonic() - begun > 60 * minutes

    if again:
        for number, row in enumerate(known):
            case = Case.of(row)
            full = case is not None and case.tuner == "full"  # only the last checkpoint of such a run is kept
            if case is not None and not full and study.home(case).is_dir() and saved(study.home(case)):
                known[number] = {**row, "readings": read_again(case, study)}
        runs = [row for row in known if Case.of(row) is not None]
        about = {"model": name, "recipe": study.recipe.name}
        found = [{**about, **cosines([study.direction(each) for each in study.directions()])}]
        if whole := study.directions(whole=True):
            found.append({**about, **with_and_without(list(whole.values()), WHOLE)})
        keep([*runs, *found], rows)
        return
    for wanted in study.wanted():
        missing = not (study.direction(wanted.name) / CARD).is_file()
        if missing and not no_build and wanted.name in (direction or FIRST) and not late():
            study.build(wanted)
            print(wanted.name, flush=True)
    if direction:
        return
    kinds = [kind.split(":") for kind in data or DATA]
    for each in seed or (11, 12, 13):
        for kind in tuner or ["r16"]:
            for column, *share in kinds:
                case = Case(column, float(share[0]) if share else 1.0, kind, each)
                if case in map(Case.of, known) or late():
                    continue
                known.append(run(case, study))
                with rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[-1]) + "\n")
                print(json.dumps({**known[-1], "readings": {}}), flush=True)


def keep(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Write all rows anew."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    typer.run(main)
