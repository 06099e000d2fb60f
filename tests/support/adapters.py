"""Every kind of adapter that PEFT has, on tiny models: which are measured exactly and how, and which are refused."""

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import config as lora_config
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from tests.support.models import move, tiny_gpt2, tiny_llama

FACTORS, RESCALED, MERGED, EXPERTS = "factors", "rescaled factors", "merged copy", "experts' factors"
HALF = ["q_proj", "down_proj"]


class Convolutions(nn.Module):
    """Convolutions of one and of two dimensions."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv1d(8, 6, 5, padding=2, groups=groups)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(pixels).flatten(2))


class Attention(nn.Module):
    """Attention whose projections are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


def llama() -> nn.Module:
    return tiny_llama(tie_word_embeddings=False)


def biased_llama() -> nn.Module:
    return tiny_llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True)


def tied_llama() -> nn.Module:
    return tiny_llama()


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=48,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            max_position_embeddings=32,
        )
    )


def convolutions(groups: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return Convolutions(groups)


def grouped_convolutions() -> nn.Module:
    return convolutions(groups=2)


def attention() -> nn.Module:
    torch.manual_seed(0)
    return Attention()


@dataclass(frozen=True)
class Case:
    """A model with adapters.

    Attributes:
        tuner: The adapter's type in PEFT.
        build: Makes the model.
        how: How it is measured; for one that is refused, a part of the reason.
        needs: A package without which PEFT doesn't make it.
    """

    tuner: PeftType
    build: Callable[[], nn.Module]
    how: str
    needs: str = "peft"


def case(
    config: type[PeftConfig],
    how: str,
    base: Callable[[], nn.Module] = llama,
    then: Callable[[Any], None] | None = None,
    needs: str = "peft",
    **settings: Any,
) -> Case:
    """Return the case of an adapter on a base.

    Args:
        config: What PEFT makes it of.
        how: As in ``Case``.
        base: Makes the base.
        then: What is done to the model before it is trained.
        needs: As in ``Case``.
        **settings: Of the adapter.
    """
    if any(field.name == "target_modules" for field in dataclasses.fields(config)):
        settings.setdefault("target_modules", HALF)
    if base not in (convolutions, grouped_convolutions, attention):
        settings["task_type"] = "CAUSAL_LM"

    def build() -> nn.Module:
        torch.manual_seed(1)
        model = get_peft_model(base(), config(**copy.deepcopy(settings)))
        if then is not None:
            then(model)
        return model

    (tuner,) = [kind for kind, made in PEFT_TYPE_TO_CONFIG_MAPPING.items() if made is config]
    return Case(tuner, build, how, needs)


def lora(how: str, base: Callable[[], nn.Module] = llama, then: Any = None, **settings: Any) -> Case:
    """Return a case of LoRA."""
    return case(LoraConfig, how, base, then, **{"r": 4, "lora_alpha": 8, **settings})


def _second(**settings: Any) -> Callable[[Any], None]:
    """Return what adds another trained adapter to a model."""

    def add(model: Any) -> None:
        model.add_adapter("second", LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": HALF, **settings}))
        model.base_model.set_adapter(["default", "second"])

    return add


def _beside_a_frozen(**settings: Any) -> Callable[[Any], None]:
    """Return what adds another adapter to a model, which is trained beside the first one, which is frozen."""

    def add(model: Any) -> None:
        move(model, seed=8, size=0.2)
        _second(**settings)(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".second" in name)

    return add


def _freeze(part: str) -> Callable[[Any], None]:
    def freeze(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.requires_grad_(False)

    return freeze


def _to(dtype: torch.dtype) -> Callable[[Any], None]:
    return lambda model: model.to(dtype)


def _half(**settings: Any) -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=HALF, task_type="CAUSAL_LM", **settings)


def _lora_ga() -> nn.Module:
    """Make a model with LoRA-GA, which needs gradients before."""
    torch.manual_seed(1)
    base = llama()
    config = _half(init_lora_weights="lora_ga", lora_ga_config=lora_config.LoraGAConfig())

    def train_step() -> None:
        ids = torch.arange(12).reshape(2, 6)
        base(input_ids=ids, labels=ids).loss.backward()

    peft.tuners.lora.preprocess_loraga(base, config, train_step)
    base.zero_grad()
    return get_peft_model(base, config)


def _corda() -> nn.Module:
    """Make a model with CorDA, which looks at inputs before."""
    torch.manual_seed(1)
    base = llama()
    config = _half(init_lora_weights="corda", corda_config=lora_config.CordaConfig(corda_method="kpm"))

    def run_model() -> None:
        with torch.no_grad():
            for ids in torch.randint(48, (16, 1, 32)):
                base(input_ids=ids)

    from peft.tuners.lora.corda import preprocess_corda

    preprocess_corda(base, config, run_model=run_model)
    return get_peft_model(base, config)


def _ref(**settings: Any) -> Callable[[Any], None]:
    """Return what trains an adapter further, from a frozen copy of it, as TRL does."""

    def further(model: Any) -> None:
        move(model, seed=8, size=0.2)
        config = next(iter(model.peft_config.values()))
        model.add_adapter("ref", copy.deepcopy(config))
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in named.items():
                if ".ref" in name:
                    parameter.copy_(named[name.replace(".ref", ".default")])
        model.set_adapter("default")

    return further


EXACT: dict[str, Case] = {
    "LoRA": lora(FACTORS),
    "LoRA, rank-stabilised, with patterns": lora(
        FACTORS, use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"down_proj": 3}
    ),
    "LoRA on Conv1D": lora(FACTORS, tiny_gpt2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True),
    "LoRA on embeddings": lora(FACTORS, target_modules=["embed_tokens", "q_proj"]),
    "LoRA with the biases of B": lora(FACTORS, biased_llama, lora_bias=True),
    "LoRA with A frozen": lora(FACTORS, then=_freeze("lora_A")),
    "LoRA with B frozen": lora(FACTORS, init_lora_weights=False, then=_freeze("lora_B")),
    "LoRA in bf16": lora(FACTORS, then=_to(torch.bfloat16)),
    "LoRA, two adapters": lora(FACTORS, then=_second(target_modules=["q_proj", "v_proj"])),
    "LoRA beside a frozen LoRA": lora(FACTORS, then=_beside_a_frozen()),
    "LoRA beside a frozen DoRA": lora(RESCALED, use_dora=True, then=_beside_a_frozen()),
    "LoRA with TRL's ref": lora(FACTORS, then=_ref()),
    "LoRA: PiSSA": lora(FACTORS, init_lora_weights="pissa"),
    "LoRA: OLoRA": lora(FACTORS, init_lora_weights="olora"),
    "LoRA: CorDA": Case(PeftType.LORA, _corda, FACTORS, needs="attr"),
    "LoRA: LoRA-GA": Case(PeftType.LORA, _lora_ga, FACTORS),
    "LoRA: orthogonal": lora(FACTORS, init_lora_weights="orthogonal"),
    "LoRA: EVA": lora(FACTORS, init_lora_weights="eva", eva_config=lora_config.EvaConfig()),
    "LoRA: MiCA": lora(FACTORS, init_lora_weights="mica"),
    "LoRA: MiCA on embeddings": lora(FACTORS, init_lora_weights="mica", target_modules=["embed_tokens"]),
    "LoRA on a parameter": lora(FACTORS, target_modules=[], target_parameters=["q_proj.weight"]),
    "LoRA on experts": lora(
        EXPERTS, mixtral, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"]
    ),
    "LoRA on convolutions": lora(MERGED, convolutions, target_modules=["first", "second"], r=2),
    "LoRA on MultiheadAttention": lora(MERGED, attention, target_modules=["attention"]),
    "LoRA: VeLoRA": lora(MERGED, velora_config=lora_config.VeloraConfig(num_groups=4)),
    "LoRA: BD-LoRA": lora(
        MERGED,
        use_bdlora=lora_config.BdLoraConfig(
            target_modules_bd_a=["down_proj"], target_modules_bd_b=["q_proj"], nblocks=2
        ),
    ),
    "LoRA: MonteCLoRA": lora(MERGED, monteclora_config=lora_config.MontecloraConfig()),
    "LoRA: KaSA": lora(MERGED, kasa_config=lora_config.KasaConfig()),
    "DoRA": lora(RESCALED, use_dora=True),
    "DoRA on Conv1D": lora(
        RESCALED, tiny_gpt2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True
    ),
    "DoRA in fp32 on a bf16 base": lora(RESCALED, lambda: llama().bfloat16(), use_dora=True),
    "DoRA: PiSSA": lora(RESCALED, use_dora=True, init_lora_weights="pissa"),
    "DoRA, two adapters": lora(RESCALED, use_dora=True, then=_second(use_dora=True)),
    "DoRA beside LoRA": lora(RESCALED, then=_second(use_dora=True)),
    "DoRA beside a frozen DoRA": lora(RESCALED, use_dora=True, then=_beside_a_frozen(use_dora=True)),
    "DoRA with TRL's ref": lora(RESCALED, use_dora=True, then=_ref()),
    "DoRA on embeddings": lora(MERGED, use_dora=True, target_modules=["embed_tokens"]),
    "DoRA on convolutions": lora(MERGED, convolutions, use_dora=True, target_modules=["first"], r=2),
    "trainable tokens": case(peft.TrainableTokensConfig, FACTORS, tied_llama, token_indices=[3, 7, 8]),
    "trainable tokens, started at random": case(
        peft.TrainableTokensConfig,
        FACTORS,
        token_indices=[3, 7, 8],
        target_modules=["embed_tokens"],
        init_weights=False,
    ),
    "trainable tokens beside LoRA": lora(FACTORS, trainable_token_indices=[1, 2]),
    "trainable tokens beside LoRA, tied": lora(FACTORS, tied_llama, trainable_token_indices=[1, 2]),
    "AdaLoRA": case(peft.AdaLoraConfig, MERGED, init_r=4, total_step=10),
    "AdaMSS": case(peft.AdamssConfig, MERGED, needs="sklearn", r=8, num_subspaces=2),
    "BEFT": case(peft.BeftConfig, MERGED, base=biased_llama),
    "BOFT": case(peft.BOFTConfig, MERGED, boft_block_size=4),
    "C3A": case(peft.C3AConfig, MERGED, block_size=8),
    "DEFT": case(peft.DeftConfig, MERGED, r=4),
    "DeLoRA": case(peft.DeloraConfig, MERGED, r=4),
    "FourierFT": case(peft.FourierFTConfig, MERGED, n_frequency=50),
    "FRoD": case(peft.FrodConfig, MERGED, sparse_rate=0.1, progressbar=False),
    "GLoRA": case(peft.GloraConfig, MERGED, r=4, base=biased_llama),
    "GraLoRA": case(peft.GraloraConfig, MERGED, r=4, gralora_k=2),
    "HiRA": case(peft.HiraConfig, MERGED, r=4),
    "HRA": case(peft.HRAConfig, MERGED, r=4),
    "IA3": case(peft.IA3Config, MERGED, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "IA3 with biases": case(
        peft.IA3Config,
        MERGED,
        base=biased_llama,
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "LN tuning": case(peft.LNTuningConfig, MERGED, target_modules=["input_layernorm", "norm"]),
    "LoHa": case(peft.LoHaConfig, MERGED, r=4),
    "LoKr": case(peft.LoKrConfig, MERGED, r=4),
    "MiSS": case(peft.MissConfig, MERGED, r=4),
    "MiSS: bat": case(peft.MissConfig, MERGED, r=4, init_weights="bat", target_modules=["q_proj"]),
    "OFT": case(peft.OFTConfig, MERGED, oft_block_size=4),
    "OSF": case(peft.OSFConfig, MERGED, effective_rank=8),
    "PEANuT": case(peft.PeanutConfig, MERGED, r=4),
    "PSOFT": case(peft.PsoftConfig, MERGED, r=8, psoft_alpha=8),
    "pVeRA": case(peft.PveraConfig, MERGED, r=8),
    "RandLoRA": case(peft.RandLoraConfig, MERGED, r=4),
    "RoAd": case(peft.RoadConfig, MERGED, group_size=8),
    "RoAd with biases": case(peft.RoadConfig, MERGED, base=biased_llama, group_size=8, variant="road_4"),
    "SHiRA": case(peft.ShiraConfig, MERGED, r=4),
    "Supertuning": case(peft.SupertuningConfig, MERGED, sparsity=0.9),
    "TinyLoRA": case(peft.TinyLoraConfig, MERGED, r=2, u=8),
    "UniLoRA": case(peft.UniLoraConfig, MERGED, r=4, theta_d_length=64),
    "VBLoRA": case(peft.VBLoRAConfig, MERGED, r=4, num_vectors=16, vector_length=8),
    "VeRA": case(peft.VeraConfig, MERGED, r=8),
    "WaveFT": case(peft.WaveFTConfig, MERGED, n_frequency=50),
}


def _arrow() -> nn.Module:
    """Make a model with Arrow, which routes each token to some of several stored adapters."""
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        lora(FACTORS).build().save_pretrained(folder)
        return peft.create_arrow_model(llama(), [folder, folder], arrow_config=lora_config.ArrowConfig(top_k=1))


def _xlora() -> nn.Module:
    """Make a model with X-LoRA, which weighs several stored adapters by what the model is given."""
    torch.manual_seed(1)
    base = llama()
    with tempfile.TemporaryDirectory() as folder:
        lora(FACTORS).build().save_pretrained(folder)
        config = peft.XLoraConfig(
            task_type="CAUSAL_LM", hidden_size=32, adapters={"first": folder, "second": folder}, xlora_size=8
        )
        base.config.use_cache = False
        return get_peft_model(base, config)


def _shadow() -> nn.Module:
    torch.manual_seed(1)
    return get_peft_model(llama(), peft.ShadowConfig(task_type="CAUSAL_LM", r=4, shadow_num_hidden_layers=1))


REFUSED: dict[str, Case] = {
    "prompt tuning": case(peft.PromptTuningConfig, "instead of its weights", num_virtual_tokens=2),
    "P-tuning": case(peft.PromptEncoderConfig, "instead of its weights", num_virtual_tokens=2, encoder_hidden_size=8),
    "prefix tuning": case(peft.PrefixTuningConfig, "instead of its weights", num_virtual_tokens=2),
    "multitask prompt tuning": case(
        peft.MultitaskPromptTuningConfig, "instead of its weights", num_virtual_tokens=2, num_tasks=2, num_ranks=1
    ),
    "CPT": case(
        peft.CPTConfig, "instead of its weights", cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2]
    ),
    "Cartridge": case(peft.CartridgeConfig, "instead of its weights", num_virtual_tokens=2),
    "adaption prompt": case(
        peft.AdaptionPromptConfig, "instead of its weights", adapter_len=2, adapter_layers=1, target_modules="self_attn"
    ),
    "X-LoRA": Case(PeftType.XLORA, _xlora, "instead of its weights"),
    "Shadow": Case(PeftType.SHADOW, _shadow, "instead of its weights"),
    "Lily": case(peft.LilyConfig, "not supported for Lily", r=4),
    "Poly": case(peft.PolyConfig, "task_ids", r=4, n_tasks=2, n_skills=2),
    "Arrow": Case(PeftType.LORA, _arrow, "Cannot merge an active Arrow router"),
    "aLoRA": lora("can't merge", alora_invocation_tokens=[1, 2]),
    "DoRA beside LoRA with the biases of B": lora(
        "not what the adapter does", biased_llama, lora_bias=True, then=_second(use_dora=True)
    ),
    "LoRA on grouped convolutions": lora("groups", grouped_convolutions, target_modules=["first", "second"], r=2),
}
