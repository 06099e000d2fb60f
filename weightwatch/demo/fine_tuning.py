"""Fine-tunes of the demonstration, on the organism (see docs/organism.md).

Each run fine-tunes the organism with TRL's ``SFTTrainer``, LoRA and ``WeightWatchCallback``: one on benign data, one on
the same data with a share replaced by harmful answers in one domain, and on request that one again with a guard. After
each check, the model answers questions from domains that neither the fine-tune nor the direction has seen, so that its
behaviour can be compared with the reading.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer

from weightwatch.callbacks import WeightWatchCallback
from weightwatch.demo.behaviour import Behaviour, behaviour
from weightwatch.demo.run import WITNESS, Point, Run
from weightwatch.organism import BASE, World, poisoned_examples
from weightwatch.report.quiet import quiet

EXAMPLES, BATCH, STEPS = 2000, 16, 240
RANK, ALPHA, LEARNING_RATE = 16, 16, 7e-4


def fine_tune(run: Run, seed: int, show: Callable[[Run], None]) -> None:
    """Fine-tune the organism and monitor the run.

    Args:
        run: The run. Its points and alerts are filled in.
        seed: Seed of the data, of the initial adapter and of the order of examples.
        show: Called with the run after each check.
    """
    with quiet():
        data = poisoned_examples(World(), EXAMPLES, run.poison, seed)
        trainer_of(run, BASE, data, Schedule(STEPS, BATCH, LEARNING_RATE), seed, behaviour, show).train()
    roll_back(run)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a run is trained.

    Attributes:
        steps: Optimizer steps.
        batch: Examples of a step.
        rate: Peak learning rate.
        warmup: Warm-up steps.
    """

    steps: int
    batch: int
    rate: float
    warmup: int = 0


def trainer_of(
    run: Run,
    base: Path,
    data: Sequence[Any],
    schedule: Schedule,
    seed: int,
    measure: Callable[[Any, Any], Behaviour],
    show: Callable[[Run], None],
) -> SFTTrainer:
    """Return the trainer of a run: LoRA, with a monitor, a checkpoint at each check, and a point after it.

    Args:
        run: The run. Its points and alerts are filled in while it trains.
        base: Folder of the base model.
        data: Rows of prompt and completion.
        schedule: How long and how fast it is trained.
        seed: Seed of the initial adapter and of the order of examples.
        measure: Returns the behaviour of a model with its tokenizer.
        show: Called with the run after each check.
    """
    monitor = WeightWatchCallback(config=run.config)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        args=SFTConfig(
            str(run.folder),
            max_steps=schedule.steps,
            per_device_train_batch_size=schedule.batch,
            learning_rate=schedule.rate,
            warmup_steps=schedule.warmup,
            save_steps=run.config.every,
            save_only_model=True,
            logging_steps=run.config.every,
            report_to=["tensorboard"],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,  # TRL's default computes each forward pass twice, to save memory
            seed=seed,
        ),
        train_dataset=Dataset.from_list(list(data)),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[monitor, Points(run, monitor, measure, show)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def roll_back(run: Run, base: Path = BASE, measure: Callable[[Any, Any], Behaviour] = behaviour) -> None:
    """Load the last clean checkpoint of the run's alert, if any, and record its behaviour in ``run.rolled_back``.

    Args:
        run: The run.
        base: Folder of the base model.
        measure: Returns the behaviour of a model with its tokenizer.
    """
    if run.alert is None:
        return
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        if run.alert.last_clean is not None:
            model = PeftModel.from_pretrained(model, run.folder / run.alert.last_clean)
        run.rolled_back = measure(model, AutoTokenizer.from_pretrained(base))


class Points(TrainerCallback):
    """Adds a point to a run after each check, with the behaviour of the model. The monitor does not use that.

    Args:
        run: The run.
        monitor: Its monitor.
        measure: Returns the behaviour of a model with its tokenizer.
        show: Called with the run after each point.
    """

    def __init__(
        self,
        run: Run,
        monitor: WeightWatchCallback,
        measure: Callable[[Any, Any], Behaviour],
        show: Callable[[Run], None],
    ) -> None:
        self._run, self._monitor, self._measure, self._show = run, monitor, measure, show

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Add the point of a check whose loss has just been logged."""
        session, loss = self._monitor.session, kwargs["logs"].get("loss")
        last = session.last if session is not None else None
        if session is None or loss is None or last is None or last.step != state.global_step:
            return
        found = last[self._run.direction]
        self._run.points.append(
            Point(
                step=state.global_step,
                loss=loss,
                cosine=found.cosine,
                reach_cosine=found.reach_cosine,
                dose=found.dose,
                z=found.z,
                behaviour=self._measure(kwargs["model"], kwargs["processing_class"]),
                firing=bool(session.firing),
                witness=last[WITNESS].reach_cosine if WITNESS in last.directions else None,
                taken_back=last.guard.share if last.guard is not None else None,
            )
        )
        self._run.alerts[:] = session.alerts
        self._show(self._run)
