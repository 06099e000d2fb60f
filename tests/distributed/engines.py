"""Every supported way to shard a model over processes, each in a real training. Runs in the processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.support.models import lora, tiny_llama
from weightwatch.vectors.weights.names import unwrapped

SIZES = {"vocab_size": 47, "hidden_size": 40, "intermediate_size": 41, "attention_bias": True}
DIVISIBLE = {**SIZES, "hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 6}  # heads by 2 and by 3
ADAPTER = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}

Full = Callable[[], Mapping[str, Tensor]]


@dataclass
class Running:
    """A model that an engine trains.

    Attributes:
        model: What is measured.
        step: Trains on one batch.
        full: Gathers the whole weights with the engine's own functions; the fp32 masters if it keeps any.
        ran: Conditions that are true if the engine really ran, by description.
        data: Seed of this process's batches: equal on processes that share one copy of the model.
    """

    model: nn.Module
    step: Callable[[Tensor], None]
    full: Full
    ran: Mapping[str, bool]
    data: int = field(default_factory=dist.get_rank)


Engine = Callable[[nn.Module], Running]


@dataclass(frozen=True)
class Case:
    """An engine, in a number of processes, with or without adapters."""

    world: int
    engine: str
    adapted: bool

    def __str__(self) -> str:
        return f"{self.engine}{' with LoRA' if self.adapted else ''} in {self.world}"


def base(engine: str) -> LlamaForCausalLM:
    """Return the plain model that an engine is given."""
    tied = engine != "fsdp1 unsharded"  # torch can't train tied weights that way
    return tiny_llama(**(DIVISIBLE if engine.startswith("tp") else SIZES), tie_word_embeddings=tied)


def plain(engine: str, adapted: bool) -> nn.Module:
    """Return the model before the engine has it."""
    model = base(engine)
    return lora(model, **_adapter(engine)) if adapted else model


def _adapter(engine: str) -> dict[str, Any]:
    # PEFT can't yet train adapters on layers that are split by rows.
    return {**ADAPTER, "target_modules": ["q_proj", "v_proj"]} if engine == "tp" else ADAPTER


def trained(case: Case, folder: str) -> Running:
    """Return a model that an engine has trained for three steps.

    Args:
        case: The engine.
        folder: Checkpoint of its base, for engines that cut the model while they load it.
    """
    engine, adapted = case.engine, case.adapted
    torch.manual_seed(0)
    parallel = engine.startswith("tp")
    running = _parallel(engine, adapted, folder) if parallel else ENGINES[engine](plain(engine, adapted))
    for step in range(3):
        running.step(_batch(step, running.data))
    wrong = [description for description, true in running.ran.items() if not true]
    assert not wrong, f"{engine} did not run as it should: {wrong}"
    return running


def _batch(step: int, data: int) -> Tensor:
    return torch.randint(0, 47, (2, 9), generator=torch.Generator().manual_seed(100 * data + step))


def _steps(model: nn.Module, **settings: Any) -> Callable[[Tensor], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, **settings)

    def step(ids: Tensor) -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, LlamaDecoderLayer)]


def _gathered(model: nn.Module) -> Full:
    def full() -> Mapping[str, Tensor]:
        named = {unwrapped(name): p.detach() for name, p in model.named_parameters()}
        return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in named.items()}

    return full


# --- replicas ---


def ddp(model: nn.Module) -> Running:
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    return Running(wrapped, _steps(wrapped), _gathered(model), {"DDP": dist.get_world_size() > 1})


# --- FSDP2 ---


def fsdp2(
    model: nn.Module,
    *,
    reshard: bool | int | None = None,
    mesh: tuple[int, ...] | None = None,
    mixed: bool = False,
    ignore: str = "",
    look: bool = False,
    offload: bool = False,
) -> Running:
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

    names = ("replicate", "shard") if mesh and len(mesh) == 2 else ("shard",)
    settings: dict[str, Any] = {"mesh": init_device_mesh("cpu", mesh or (dist.get_world_size(),), mesh_dim_names=names)}
    if mixed:
        settings["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if offload:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    if ignore:
        settings["ignored_params"] = {p for n, p in model.named_parameters() if n.endswith("norm.weight")}
    for layer in _layers(model):
        fully_shard(layer, reshard_after_forward=reshard, **settings)
    fully_shard(model, reshard_after_forward=reshard, **settings)
    step = _steps(model)

    def looked(ids: Tensor) -> None:
        step(ids)
        with torch.no_grad():  # as an evaluation does: gathered weights then stay in the modules
            model(input_ids=ids)

    kinds = {isinstance(p, DTensor) for p in model.parameters()}
    ran = {"FSDPModule": isinstance(model, FSDPModule), "DTensors": kinds == ({True, False} if ignore else {True})}
    running = Running(model, looked if look else step, _resharded(model), ran)
    if ignore == "with equal data":  # nobody adds up the gradients of what FSDP ignores
        running.data = 0
    return running


def _resharded(model: Any) -> Full:
    def full() -> Mapping[str, Tensor]:
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()
        return _gathered(model)()

    return full


# --- FSDP1 ---


def fsdp1(
    model: nn.Module, *, strategy: str = "FULL_SHARD", original: bool = True, mixed: bool = False, look: bool = False
) -> Running:
    import functools

    from torch.distributed.fsdp import (
        FullStateDictConfig,
        FullyShardedDataParallel,
        MixedPrecision,
        ShardingStrategy,
        StateDictType,
    )
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy, lambda_auto_wrap_policy

    adapted = not all(p.requires_grad for p in model.parameters())
    policy: Any = ModuleWrapPolicy({LlamaDecoderLayer})
    if adapted and not original:  # frozen and trained ones can't share a flat parameter
        policy = functools.partial(lambda_auto_wrap_policy, lambda_fn=_trained_leaf)
    groups: dict[str, Any] = {}
    if strategy == "HYBRID_SHARD":
        groups["device_mesh"] = init_device_mesh("cpu", (2, dist.get_world_size() // 2))
    wrapped = FullyShardedDataParallel(
        model,
        sharding_strategy=ShardingStrategy[strategy],
        use_orig_params=original,
        auto_wrap_policy=policy,
        mixed_precision=MixedPrecision(param_dtype=torch.bfloat16) if mixed else None,
        device_id=torch.device("cpu"),
        **groups,
    )
    step = _steps(wrapped)

    def looked(ids: Tensor) -> None:
        step(ids)
        with torch.no_grad():
            wrapped(input_ids=ids)

    def full() -> Mapping[str, Tensor]:
        kind = FullStateDictConfig(offload_to_cpu=False, rank0_only=False)
        with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT, kind):
            return {unwrapped(name): value.clone() for name, value in wrapped.state_dict().items()}

    flattened = any(hasattr(p, "_fsdp_flattened") for p in wrapped.parameters())
    return Running(wrapped, looked if look else step, full, {"flattened": flattened})


def _trained_leaf(module: nn.Module) -> bool:
    return not list(module.children()) and any(p.requires_grad for p in module.parameters())


# --- tensor parallelism, alone and under FSDP2 ---


def _parallel(engine: str, adapted: bool, folder: str) -> Running:
    """Load a checkpoint as transformers does it with a tp_plan, or cut the model with torch's parallelize_module."""
    from transformers.distributed import DistributedConfig

    world = dist.get_world_size()
    data = 0
    if engine == "tp torch":
        model: Any = base(engine)
        _cut(model, init_device_mesh("cpu", (world,), mesh_dim_names=("tp",)))
    elif engine == "tp and fsdp2 torch":
        from torch.distributed.fsdp import fully_shard

        model = base(engine)
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        _cut(model, mesh["tp"])
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(model, mesh=mesh["dp"])
        data = mesh["dp"].get_local_rank()
    elif engine == "tp and replicas":
        model = base(engine)
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        _cut(model, mesh["tp"])
    else:
        sizes = {"tp_size": 2, "fsdp_size": world // 2} if engine == "tp and fsdp2" else {"tp_size": world}
        model = LlamaForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**sizes))
        data = dist.get_rank() // 2 if engine == "tp and fsdp2" else 0
        if adapted:
            from peft import LoraConfig, get_peft_model

            torch.manual_seed(1)
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **_adapter(engine)))
    shards = {str(p.placements) for p in model.parameters() if isinstance(p, DTensor)}
    ran = {
        f"split by columns and by rows: {shards}": any("dim=1" in s for s in shards)
        and any("dim=0" in s for s in shards),
        f"FSDP over TP: {shards}": "fsdp2" not in engine or any("_StridedShard" in s for s in shards),
    }
    # Frozen DTensors and plain tensors cannot be updated in one call.
    return Running(model, _steps(model, foreach=False), _resharded(model), ran, data)


def _cut(model: nn.Module, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "layers" in name:
            rows = name.rsplit(".", 1)[-1] in ("o_proj", "down_proj")
            for key, parameter in list(module.named_parameters()):
                placement = Replicate() if rows and key == "bias" else Shard(1 if rows else 0)
                module.register_parameter(key, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [placement])))
            _through_dtensors(module, mesh)


def _through_dtensors(module: nn.Module, mesh: Any) -> None:
    from torch.distributed.tensor import Replicate

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False),)

    def after(_: nn.Module, __: Any, output: Any) -> Tensor:
        return output.redistribute(placements=[Replicate()]).to_local()

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


# --- DeepSpeed ---


def zero(model: nn.Module, *, stage: int, bf16: bool = False, settings: Mapping[str, Any] | None = None) -> Running:
    compile_nothing()
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 100, **(settings or {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(trained, lr=1e-2), config=config
    )

    def step(ids: Tensor) -> None:
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()

    def full() -> Mapping[str, Tensor]:
        found = {}
        for name, parameter in engine.module.named_parameters():
            whole = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if whole is None or (stage < 3 and not bf16):
                with deepspeed.zero.GatheredParameters([parameter]):
                    whole = parameter.detach()
                    found[name] = whole.clone()
            else:
                found[name] = whole.detach().clone()
        return found

    parameters = list(engine.module.parameters())
    ran = {
        f"stage {stage}": engine.zero_optimization_stage() == stage,
        "partitioned": all(hasattr(p, "ds_id") for p in parameters) == (stage == 3),
        f"optimizer {type(optimizer).__name__}": "Zero" in type(optimizer).__name__
        or type(optimizer).__name__ == "BF16_Optimizer",
        "persistent ones too": stage < 3 or len({p.ds_persist for p in parameters}) == 2,
        "precision": {p.dtype for p in parameters} == {torch.bfloat16 if bf16 else torch.float32},
    }
    return Running(engine.module, step, full, ran)


def compile_nothing() -> None:
    """Let DeepSpeed use gloo and torch's optimizers: its own take a compiler and minutes, and a lock when killed."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__ = dict.fromkeys(deepspeed.ops.__compatible_ops__, False)


def _of(function: Callable[..., Running], **settings: Any) -> Engine:
    return lambda model: function(model, **settings)


ENGINES: dict[str, Engine] = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "fsdp2 after an evaluation": _of(fsdp2, reshard=False, look=True),
    "fsdp2 mixed": _of(fsdp2, mixed=True, look=True),
    "fsdp2 ignoring": _of(fsdp2, ignore="with equal data"),
    "fsdp2 diverged copies": _of(fsdp2, ignore="with other data"),
    "fsdp2 offloaded": _of(fsdp2, offload=True),
    "fsdp2 hybrid": _of(fsdp2, mesh=(2, 2)),
    "fsdp2 to a part": _of(fsdp2, reshard=2, look=True),
    "fsdp1": fsdp1,
    "fsdp1 flat": _of(fsdp1, original=False),
    "fsdp1 gradients": _of(fsdp1, strategy="SHARD_GRAD_OP", look=True),
    "fsdp1 flat gradients": _of(fsdp1, strategy="SHARD_GRAD_OP", original=False, look=True),
    "fsdp1 mixed": _of(fsdp1, mixed=True),
    "fsdp1 unsharded": _of(fsdp1, strategy="NO_SHARD"),
    "fsdp1 flat unsharded": _of(fsdp1, strategy="NO_SHARD", original=False),
    "fsdp1 hybrid": _of(fsdp1, strategy="HYBRID_SHARD"),
    "zero1": _of(zero, stage=1),
    "zero1 bf16": _of(zero, stage=1, bf16=True),
    "zero2": _of(zero, stage=2),
    "zero2 bf16": _of(zero, stage=2, bf16=True),
    "zero2 bf16 offloaded": _of(zero, stage=2, bf16=True, settings={"offload_optimizer": {"device": "cpu"}}),
    "zero3": _of(zero, stage=3),
    "zero3 bf16": _of(zero, stage=3, bf16=True),
    "zero3 bf16 offloaded": _of(zero, stage=3, bf16=True, settings={"offload_optimizer": {"device": "cpu"}}),
    "zero3 bf16 groups": _of(zero, stage=3, bf16=True, settings={"sub_group_size": 3000}),
}


BOTH = (False, True)
CASES = [
    *(
        Case(2, engine, adapted)
        for engine in ENGINES
        if not any(word in engine for word in ("hybrid", "to a part", "diverged copies"))
        for adapted in BOTH
    ),
    *(Case(2, "tp", adapted) for adapted in BOTH),
    Case(2, "tp torch", False),
    *(
        Case(3, engine, adapted)
        for engine in ("ddp", "fsdp2", "fsdp2 mixed", "fsdp1", "fsdp1 flat", "zero2 bf16", "zero3", "zero3 bf16", "tp")
        for adapted in BOTH
    ),
    *(Case(4, engine, adapted) for engine in ("fsdp2 hybrid", "fsdp2 to a part", "fsdp1 hybrid") for adapted in BOTH),
    *(Case(4, engine, False) for engine in ("tp and fsdp2", "tp and fsdp2 torch", "tp and replicas")),
]
CASES.remove(Case(2, "fsdp1 unsharded", True))  # torch can't gather its state dict
