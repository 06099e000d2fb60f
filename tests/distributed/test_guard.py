"""The guard in several real processes: one model, guarded alike on all of them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from tests.distributed.conftest import Pool
from tests.distributed.engines import ENGINES, Case, base, plain, trained
from tests.distributed.processes import Processes
from tests.support.guards import correlated, same
from tests.support.models import dense, lora, low_rank, tiny_llama
from tests.support.runs import STRICT, At, lines, sequences, settings
from weightwatch import Alert, Config, Direction, Monitor, WeightWatchCallback, WeightWatchError
from weightwatch.guard import Guard
from weightwatch.guard.full import Full
from weightwatch.guard.multiples import Multiples
from weightwatch.guard.parts import Stacked
from weightwatch.guard.trained import local
from weightwatch.guarding import Guarding
from weightwatch.reading.reading import Guarded, Reading
from weightwatch.update.sharding.ranks import Ranks

pytestmark = pytest.mark.distributed

# --- replicas: a Trainer under DDP ---

BUDGET = 1e-5
FIRST = {"alert": "moved", "direction": "evil", "metric": "dose", "above": -1e9, "actions": ["log", "guard"]}
"""Switches the guard on at the first check at which anything has moved: step 2."""

Trained = tuple[dict[str, Tensor], str]


def train(
    folder: str, adapted: bool, processes: int = 2, fault: str = "", on_guard_error: str = "stop", **config: Any
) -> Trained:
    """Train on 8 sequences a step, guarded from the first alert on. Return the weights and the error.

    Args:
        folder: The output.
        adapted: Whether LoRA is trained, or all weights.
        processes: How many train together.
        fault: What goes wrong at step 4, after the optimizer has stepped: ``nan`` or ``error`` on the second process
            alone, ``errors`` on each.
        on_guard_error: What that does.
        **config: Further settings.
    """
    changes: dict[str, Any] = {"per_device_train_batch_size": 8 // processes, "optim": "sgd", "learning_rate": 0.3}
    if processes > 1:
        changes["ddp_backend"] = "gloo"
    changes |= {"optim_args": "momentum=0.9", "lr_scheduler_type": "constant", "max_steps": 6}
    arguments = TrainingArguments(**settings(Path(folder), **changes))
    assert arguments.device.type == "cpu"  # asking for it starts torch.distributed
    model = lora(tiny_llama()) if adapted else tiny_llama()
    guard = {"mode": "update", "budget": BUDGET, "when": "alert", "witness": "evil-2"}
    chosen = {"guard": guard, "rules": [FIRST], "on_guard_error": on_guard_error, **config}
    callback = WeightWatchCallback(
        [low_rank(tiny_llama(), 5), low_rank(tiny_llama(), 6, name="evil-2")],
        config={**STRICT, "tensorboard": False, **chosen},
    )
    trainer = Trainer(model, arguments, train_dataset=sequences())
    if fault and (fault == "errors" or torch.distributed.get_rank() == 1):
        trainer.add_callback(At(4, spoil if fault == "nan" else unreadable))
    trainer.add_callback(callback)
    message = ""
    try:
        trainer.train()
    except WeightWatchError as error:
        message = str(error)
    assert trainer.accelerator.distributed_type.value == ("MULTI_CPU" if processes > 1 else "NO")
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}, message


def spoil(model: Any) -> None:
    guarded = [p for name, p in model.named_parameters() if p.requires_grad and "proj" in name]
    guarded[-1].detach().view(-1)[0] = torch.nan


def unreadable(model: Any) -> None:
    """Let the guard meet what it can't foresee, once."""
    patch = pytest.MonkeyPatch()

    def broken(*_: Any, **__: Any) -> None:
        patch.undo()
        raise RuntimeError("the device is gone")

    patch.setattr(Multiples, "take_back", broken)


@pytest.fixture(scope="module")
def together() -> Iterator[Processes]:
    """Two processes in which the Trainer starts torch.distributed itself."""
    group = Processes(2, grouped=False)
    yield group
    group.stop()


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "LoRA"])
def test_an_alert_arms_the_guard_of_both_replicas_and_they_stay_equal(
    tmp_path: Path, together: Processes, adapted: bool
) -> None:
    (first, error), (second, _) = together.run(train, str(tmp_path / "two"), adapted)
    alone, _ = train(str(tmp_path / "one"), adapted, processes=1)
    assert not error
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert (tensor - alone[name]).norm() <= 1e-5 * alone[name].norm(), name
    ours, theirs = lines(tmp_path / "two"), lines(tmp_path / "one")
    assert [line["guard"]["steps"] for line in ours] == [0, 0, 2, 2]
    for line, other in zip(ours[2:], theirs[2:], strict=True):
        assert line["guard"]["dose"]["evil"] == pytest.approx(other["guard"]["dose"]["evil"], rel=1e-2)
        assert line["directions"]["evil"]["dose"] <= BUDGET * 1.01
    assert sum(line["guard"]["dose"]["evil"] for line in ours) > BUDGET
    unguarded, _ = train(str(tmp_path / "free"), adapted, processes=1, rules=[], guard=None)
    assert any((tensor - unguarded[name]).norm() > 1e-3 * tensor.norm() for name, tensor in first.items())


@pytest.mark.parametrize("on_guard_error", ["stop", "continue"])
@pytest.mark.parametrize("fault", ["nan", "error"])
def test_a_guard_that_fails_on_one_replica_stops_both(
    tmp_path: Path, together: Processes, fault: str, on_guard_error: str
) -> None:
    (_, first), (_, second) = together.run(train, str(tmp_path), True, 2, fault, on_guard_error)
    reason = "NaN or infinite" if fault == "nan" else "the device is gone"
    assert reason in second
    assert "see the log of another process" in first
    for error in (first, second):
        if on_guard_error == "stop":
            assert error.startswith("The guard failed at step 4: ")
        else:
            assert error.startswith("The guard failed at step 4 on 1 of 2 processes: ")
            assert "their weights may differ" in error
    assert lines(tmp_path, "alerts.jsonl")[-1]["alert"] == "guard-failed"


def test_a_guard_that_fails_on_both_replicas_may_be_gone_without(tmp_path: Path, together: Processes) -> None:
    found = together.run(train, str(tmp_path), True, 2, "errors", "continue")
    assert [error for _, error in found] == ["", ""]
    assert [line["guard"]["steps"] for line in lines(tmp_path)] == [0, 0, 1, 0]


# --- shards: loops of one's own under every engine that shards ---

STEPS = 4
ZERO = ["zero1", "zero1 bf16", "zero2", "zero2 bf16", "zero3", "zero3 bf16"]
SHARDED = [
    *(Case(2, engine, adapted) for engine in ("fsdp2", "fsdp1", "tp") for adapted in (False, True)),
    Case(2, "fsdp2 ignoring", False),
    Case(2, "fsdp2 offloaded", False),
    Case(2, "fsdp1 gradients", False),
    Case(2, "fsdp1 unsharded", False),
    Case(2, "tp torch", False),
    *(Case(3, engine, adapted) for engine in ("fsdp2", "fsdp1") for adapted in (False, True)),
    *(Case(4, engine, adapted) for engine in ("fsdp2 hybrid", "fsdp1 hybrid") for adapted in (False, True)),
    *(Case(4, engine, False) for engine in ("tp and fsdp2 torch", "tp and replicas")),
]
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum": lambda trained: torch.optim.SGD(trained, lr=0.3, momentum=0.9, foreach=False),
    # The large eps keeps rounding errors of tiny gradients from becoming whole steps.
    "adam": lambda trained: torch.optim.Adam(trained, lr=1e-2, eps=1e-3, foreach=False),
}


def evil(engine: str, kind: str) -> list[Direction]:
    """Return two directions with a cosine of about 0.8."""
    of = low_rank if kind == "factors" else dense
    first = of(base(engine), 5)
    return [first, correlated(first, of(base(engine), 6))]


def begun(
    case: Case, model: nn.Module, kind: str, optimizer: str, guard: Mapping[str, Any], *, starts: bool = False
) -> tuple[Monitor, Guard, torch.optim.Optimizer]:
    """Begin to guard a model, from the adapters as they are now if that is said."""
    reference = None if case.adapted else {n: t.clone() for n, t in base(case.engine).state_dict().items()}
    made = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    monitor = Monitor(evil(case.engine, kind), reference=reference)
    if starts:
        monitor.start(model)
    found = Guard(monitor, {"witness": "none", "mode": "update", **guard})
    found.begin(model, made)
    return monitor, found, made


def batch(step: int, data: int) -> Tensor:
    return torch.randint(0, 47, (2, 9), generator=torch.Generator().manual_seed(1000 + 100 * data + step))


@dataclass
class Ran:
    """A guarded training on one process: the whole weights before and after it, what the guard did, and a loss."""

    data: int
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    account: Guarded
    reading: Reading
    loss: float


def run(
    case: Case, model: nn.Module, data: Sequence[int], kind: str, optimizer: str, guard: dict[str, Any], **how: bool
) -> Ran:
    """Train some steps, guarded; evaluate, as trainers do at the end; end, and evaluate again."""
    monitor, found, made = begun(case, model, kind, optimizer, guard, **how)
    for step in range(STEPS):
        losses = [model(input_ids=(ids := batch(step, seed)), labels=ids).loss for seed in data]
        torch.stack(losses).mean().backward()
        made.step()
        found.after_step()
        made.zero_grad()
    evaluated(model)
    found.end()
    reading = replace(monitor.measure(model, step=STEPS), time="")
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Ran(data[0], {}, after, found.account(reading.update_norm), reading, evaluated(model))


def evaluated(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model(input_ids=batch(0, 9), labels=batch(0, 9)).loss)


def guarded(case: Case, folder: str, kind: str, optimizer: str, guard: dict[str, Any], starts: bool = False) -> Ran:
    """Train a model that an engine shards, guarded; further, if there is a checkpoint. Runs in the processes."""
    running = trained(case, folder) if folder else ENGINES[case.engine](plain(case.engine, case.adapted))
    before = {name: tensor.clone() for name, tensor in running.full().items()}
    ran = run(case, running.model, [running.data], kind, optimizer, guard, starts=starts)
    return replace(ran, before=before, after=dict(running.full()))


def alone(
    case: Case, ran: Sequence[Ran], kind: str, optimizer: str, guard: dict[str, Any], starts: bool = False
) -> Ran:
    """Do the same in this process with the whole model and all data."""
    model = plain(case.engine, case.adapted)
    model.load_state_dict(ran[0].before, strict=False)
    return run(case, model, [each.data for each in ran], kind, optimizer, guard, starts=starts)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(
    "guard",
    [
        {"mode": "update", "budget": BUDGET, "per": "model"},
        {"mode": "update", "both_ways": True, "strength": 0.5},
        {"mode": "update", "layers": [1]},
        {"mode": "checkpoint", "budget": BUDGET},
    ],
    ids=str,
)
def test_shards_are_guarded_as_the_settings_say(
    pool: Pool, checkpoint: Path, guard: dict[str, Any], adapted: bool
) -> None:
    case = Case(2, "fsdp2", adapted)
    ran = pool(2).run(guarded, case, str(checkpoint), "factors", "adam", guard)
    assert_as_one(ran, alone(case, ran, "factors", "adam", guard))


@pytest.mark.parametrize("engine", ["fsdp2", "fsdp1"])
def test_sharded_adapters_that_are_trained_further_are_guarded_from_their_start(
    pool: Pool, checkpoint: Path, engine: str
) -> None:
    case, guard = Case(2, engine, True), {"mode": "update", "budget": BUDGET}
    ran = pool(2).run(guarded, case, str(checkpoint), "factors", "adam", guard, True)
    assert_as_one(ran, alone(case, ran, "factors", "adam", guard, starts=True))


@pytest.mark.parametrize("engine", ["fsdp2 after an evaluation", "fsdp1 gradients"])
def test_what_is_taken_back_at_the_end_is_also_out_of_weights_that_an_evaluation_has_gathered(
    pool: Pool, checkpoint: Path, engine: str
) -> None:
    case, guard = Case(2, engine, False), {"mode": "checkpoint"}
    ran = pool(2).run(guarded, case, str(checkpoint), "dense", "momentum", guard)
    one = alone(case, ran, "dense", "momentum", guard)
    assert_as_one(ran, one)
    assert ran[0].loss == pytest.approx(one.loss, rel=1e-6)


@pytest.mark.parametrize("engine", ["fsdp2 mixed", "fsdp1 mixed"])
def test_the_budget_holds_where_shards_are_in_fp32_and_the_rest_is_not(
    pool: Pool, checkpoint: Path, engine: str
) -> None:
    first, second = pool(2).run(
        guarded, Case(2, engine, False), str(checkpoint), "factors", "adam", {"mode": "update", "budget": BUDGET}
    )
    assert_within_budget(first)
    assert first.account == second.account
    assert first.account.share > 0.01


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("engine", ["fsdp2", "fsdp1"])
def test_a_guard_that_begins_before_the_first_forward_pass_guards_what_the_engine_sets_up_then(
    pool: Pool, engine: str, adapted: bool
) -> None:
    case, guard = Case(2, engine, adapted), {"mode": "update", "budget": BUDGET}
    ran = pool(2).run(guarded, case, "", "dense", "adam", guard)
    assert_as_one(ran, alone(case, ran, "dense", "adam", guard))


def assert_as_one(ran: Sequence[Ran], one: Ran) -> None:
    """Assert that a sharded training equals one of the whole model, and that the guard did something in both."""
    first = ran[0]
    for other in ran[1:]:
        assert (other.account, other.reading) == (first.account, first.reading)
        assert all(torch.equal(tensor, other.after[name]) for name, tensor in first.after.items())
    assert first.account.steps == one.account.steps
    assert one.account.steps == 0 or one.account.share > 1e-3
    for name, dose in one.account.dose.items():
        assert abs(dose) > 1e-6
        assert first.account.dose[name] == pytest.approx(dose, rel=1e-4)
    assert first.account.share == pytest.approx(one.account.share, rel=1e-4)
    moved = 0
    for name, tensor in one.after.items():
        change = (tensor - first.before[name]).norm()
        assert (first.after[name] - tensor).norm() <= 1e-4 * change + 1e-7 * tensor.norm(), name
        moved += bool(change > 1e-3 * tensor.norm())
    assert moved


def assert_within_budget(ran: Ran) -> None:
    for name, found in ran.reading.directions.items():
        for tensor, score in found.tensors.items():
            assert score.dose is not None
            assert score.dose <= BUDGET + 1e-6, (name, tensor)


def untouched(case: Case, folder: str, fault: str) -> tuple[str, bool]:
    """Return the error of a guard that fails on the second process, and whether weights and moments are as before."""
    running = trained(case, folder)
    _, found, made = begun(case, running.model, "dense", "adam", {"mode": "update"})
    for step in range(2):
        ids = batch(step, running.data)
        running.model(input_ids=ids, labels=ids).loss.backward()
        made.step()
        made.zero_grad()
    mine = [p for p in running.model.parameters() if p.requires_grad and local(p).numel()]
    with pytest.MonkeyPatch.context() as patch:
        if torch.distributed.get_rank() == 1:
            if fault == "moment":
                for p in mine:
                    local(made.state[p]["exp_avg"]).view(-1)[0] = torch.nan
            elif fault == "weight":
                local(mine[-1]).view(-1)[0] = torch.nan
            else:
                broken = Mock(side_effect=RuntimeError("the device is gone"))
                patch.setattr(Stacked if case.adapted else Full, "sums", broken)
        kept = [local(p) for p in mine] + [local(made.state[p]["exp_avg"]) for p in mine]
        before = {str(i): tensor.clone() for i, tensor in enumerate(kept)}
        with pytest.raises((WeightWatchError, RuntimeError)) as error:
            found.after_step()
    same_now = same(before, {str(i): tensor for i, tensor in enumerate(kept)})
    assert found.account().steps == 0
    return f"{type(error.value).__name__}: {error.value}", same_now


@pytest.mark.parametrize("fault", ["weight", "moment", "error"])
@pytest.mark.parametrize("case", [Case(2, "fsdp2", False), Case(2, "fsdp2", True), Case(2, "fsdp1", False)], ids=str)
def test_what_fails_on_one_process_changes_nothing_on_any(pool: Pool, checkpoint: Path, case: Case, fault: str) -> None:
    (first, kept), (second, kept_too) = pool(2).run(untouched, case, str(checkpoint), fault)
    assert kept
    assert kept_too
    if fault == "error":
        assert second == "RuntimeError: the device is gone"
        assert first.startswith("RuntimeError: Another process")
    else:
        assert first == second
        assert "found NaN or infinite values" in first


def calls(case: Case, folder: str) -> list[int]:
    """Return how many times the processes wait for each other in each step of the guard. Runs in the processes."""
    running = trained(case, folder)
    _, found, made = begun(case, running.model, "factors", "adam", {"mode": "update"})
    counts = []
    for step in range(STEPS):
        ids = batch(step, running.data)
        running.model(input_ids=ids, labels=ids).loss.backward()
        made.step()
        with pytest.MonkeyPatch.context() as patch:
            counted = Mock(side_effect=torch.distributed.all_reduce)
            patch.setattr(torch.distributed, "all_reduce", counted)
            found.after_step()
        counts.append(counted.call_count)
        made.zero_grad()
    return counts


@pytest.mark.parametrize(("adapted", "most"), [(False, 2), (True, 3)], ids=["full", "LoRA"])
def test_a_step_takes_one_call_for_the_weights_one_for_momentum_and_one_for_factors(
    pool: Pool, checkpoint: Path, adapted: bool, most: int
) -> None:
    first, second = pool(2).run(calls, Case(2, "fsdp2", adapted), str(checkpoint))
    assert first == second
    assert max(first) == most


def in_a_run(case: Case, folder: str, nan: bool) -> tuple[list[str], list[str], dict[str, float]]:
    """Guard as a session does. Return errors, alerts, and the doses at the end. Runs in the processes."""
    running = trained(case, folder)
    reference = {n: t.clone() for n, t in base(case.engine).state_dict().items()}
    monitor = Monitor(evil(case.engine, "factors"), reference=reference, ranks=Ranks.world())
    told: list[str] = []

    def failed(step: int, fault: BaseException | None, alert: Alert, *, stops: bool) -> None:
        told.append(alert.describe())

    config = Config.load({"guard": {"witness": "none", "mode": "checkpoint"}})
    guarding = Guarding(monitor, config, Ranks.world(), failed)
    guarding.begin(0, running.model, None, monitor.view(running.model), [])
    ids = batch(0, running.data)
    running.step(ids)
    if nan and torch.distributed.get_rank() == 1:
        local(next(p for n, p in running.model.named_parameters() if "o_proj.weight" in n)).view(-1)[0] = torch.nan
    try:
        left = guarding.end(1)
    except WeightWatchError as error:
        return [str(error)], told, {}
    return [], told, {name: found.dose or 0.0 for name, found in left.directions.items()} if left else {}


@pytest.mark.parametrize("nan", [False, True])
def test_a_run_of_shards_is_stopped_on_all_processes_or_measured_as_the_guard_leaves_it(
    pool: Pool, checkpoint: Path, nan: bool
) -> None:
    first, second = pool(2).run(in_a_run, Case(2, "fsdp2", False), str(checkpoint), nan)
    assert first == second
    errors, told, doses = first
    if nan:
        assert errors[0].startswith("The guard failed at step 1: The guard found NaN or infinite values")
        assert len(told) == 1
    else:
        assert (errors, told) == ([], [])
        assert set(doses) == {"evil", "second"}
        assert all(dose < 1e-6 for dose in doses.values())


def refusal(case: Case, folder: str, guard: dict[str, Any]) -> str:
    """Return the error of a guard that can't begin. Runs in the processes."""
    running = trained(case, folder)
    with pytest.raises(WeightWatchError) as error:
        begun(case, running.model, "factors", "adam", guard)
    return str(error.value)


@pytest.mark.parametrize(
    ("engine", "guard", "message"),
    [
        ("fsdp2", {"mode": "subspace"}, r"sharded over processes, where `mode: subspace` .*Use `mode: update`"),
        ("fsdp2", {"mode": "gradient"}, r"sharded over processes, where `mode: gradient` .*Use `mode: update`"),
        ("fsdp1 flat", {}, r"is flattened by FSDP .*use_orig_params=True, or train with FSDP2"),
        *((engine, {}, r"DeepSpeed ZeRO.*FSDP2 \(fully_shard\) or DDP") for engine in ZERO),
    ],
)
@pytest.mark.parametrize("adapted", [False, True])
def test_what_can_not_be_exact_is_refused_on_every_process(
    pool: Pool, checkpoint: Path, engine: str, guard: dict[str, Any], message: str, adapted: bool
) -> None:
    first, second = pool(2).run(refusal, Case(2, engine, adapted), str(checkpoint), guard)
    assert first == second
    assert re.search(message, first)


@pytest.mark.parametrize("case", SHARDED, ids=str)  # last, since these take other numbers of processes
def test_shards_that_are_guarded_are_those_of_the_guarded_whole(pool: Pool, checkpoint: Path, case: Case) -> None:
    kind, optimizer = ("factors", "adam") if case.adapted else ("dense", "momentum")
    guard = {"mode": "update", "budget": BUDGET}
    ran = pool(case.world).run(guarded, case, str(checkpoint), kind, optimizer, guard)
    assert_as_one(ran, alone(case, ran, kind, optimizer, guard))
    assert_within_budget(ran[0])
