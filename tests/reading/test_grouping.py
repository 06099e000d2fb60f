"""Grouping against what models say of themselves: their lists of modules, on the meta device in their full sizes."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    FlaubertConfig,
    FlaubertWithLMHeadModel,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.pytorch_utils import Conv1D

from weightwatch.reading.grouping import Groups, group, split

FAMILIES = {
    AutoModelForCausalLM: """
        llama qwen2 qwen3 gemma gemma2 gemma3_text gemma3n_text phi phi3 mistral gpt2 gpt_neo gpt_neox gptj opt bloom
        falcon olmo2 olmo3 starcoder2 stablelm cohere cohere2 glm4 smollm3 granite mpt persimmon codegen gpt_bigcode
        openai-gpt biogpt xglm exaone4 ernie4_5 helium seed_oss bitnet apertus arcee cpmant
        mixtral qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 gpt_oss granitemoe granitemoeshared olmoe phimoe llama4_text
        jetmoe glm4_moe ernie4_5_moe longcat_flash flex_olmo minimax
        mamba mamba2 falcon_mamba jamba zamba zamba2 bamba falcon_h1 recurrent_gemma rwkv qwen3_next lfm2
        granitemoehybrid nemotron_h xlstm
        xlm xlnet ctrl bert roberta modernbert-decoder blt
    """,
    AutoModelForSeq2SeqLM: """
        t5 mt5 longt5 umt5 switch_transformers bart mbart pegasus marian blenderbot led m2m_100 plbart prophetnet fsmt
        nllb-moe t5gemma bigbird_pegasus
    """,
    AutoModelForImageTextToText: """
        qwen2_vl qwen2_5_vl qwen3_vl qwen3_5 llava llava_next gemma3 smolvlm idefics idefics2 idefics3 mllama gemma4
        paligemma internvl mistral3 git florence2 kosmos-2 llama4 glm4v glm_ocr aria pix2struct paddleocr_vl t5gemma2
        udop
    """,
    AutoModelForSpeechSeq2Seq: "whisper speech_to_text moonshine seamless_m4t",
}


def plain(auto: Any, family: str, **settings: Any) -> PreTrainedModel:
    return auto.from_config(AutoConfig.for_model(family, **settings))


DBRX = {"rope_theta": 1e4, "kv_n_heads": 8, "clip_qkv": 8}
BERT_DECODER = BertConfig(is_decoder=True, add_cross_attention=True)
OPT = {"model_type": "opt", "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32}
TURBO = {"d_model": 1280, "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_layers": 32}
LARGE_VIT = ViTConfig(hidden_size=1024, num_hidden_layers=24, intermediate_size=4096, num_attention_heads=16)

BUILD: dict[str, Callable[[], PreTrainedModel]] = {
    **{family: partial(plain, auto, family) for auto, families in FAMILIES.items() for family in families.split()},
    "nemotron": partial(plain, AutoModelForCausalLM, "nemotron", num_key_value_heads=48),
    "dbrx": partial(plain, AutoModelForCausalLM, "dbrx", attn_config=DBRX, ffn_config={}),
    "lfm2_moe": partial(plain, AutoModelForCausalLM, "lfm2_moe", layer_types=["conv", "full_attention"] * 16),
    "reformer": partial(plain, AutoModelForCausalLM, "reformer", is_decoder=True),
    "albert": partial(plain, AutoModelForMaskedLM, "albert"),
    "flaubert": lambda: FlaubertWithLMHeadModel(FlaubertConfig()),
    "BLIP-2 with OPT 2.7B": partial(plain, AutoModelForImageTextToText, "blip-2", text_config=OPT),
    "Whisper turbo": partial(plain, AutoModelForSpeechSeq2Seq, "whisper", decoder_layers=4, **TURBO),
    "DistilBART 12-3": partial(plain, AutoModelForSeq2SeqLM, "bart", decoder_layers=3),
    "two BERTs, the larger one the encoder": lambda: EncoderDecoderModel(
        EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(num_hidden_layers=24), BERT_DECODER)
    ),
    "a large ViT and a BERT": lambda: VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_encoder_decoder_configs(LARGE_VIT, BERT_DECODER)
    ),
}

# Where `get_decoder` or the config does not point to the list of blocks: two lists of that length, another count, …
TEXT_BLOCKS = {
    "longcat_flash": ["model.layers"],
    "idefics": ["model.layers"],
    "blt": ["model.global_transformer.layers"],
    "florence2": ["model.language_model.decoder.layers"],
    "modernbert-decoder": ["model.layers"],
    "albert": ["albert.encoder.albert_layer_groups"],
}


@dataclass
class Model:
    """A model's own structure: its parameters and its outermost lists of modules."""

    sizes: dict[str, int]
    matrices: set[str]
    linear: set[str]
    lists: dict[str, nn.ModuleList]
    text: list[str]
    """The lists that the text decoder's blocks are in; several where a block is in pieces."""

    @property
    def groups(self) -> Groups:
        return group(self.sizes)

    def beneath(self, module: str) -> list[str]:
        return [name for name in self.sizes if name.startswith(f"{module}.")]

    def blocks(self) -> dict[int, list[str]]:
        """Return the names of the parameters of each text block."""
        length = len(self.lists[self.text[0]])
        return {i: [name for path in self.text for name in self.beneath(f"{path}.{i}")] for i in range(length)}


@cache
def built(family: str) -> Model:
    with torch.device("meta"):
        model = BUILD[family]()
    modules = dict(model.named_modules())
    outermost = {
        path: module
        for path, module in modules.items()
        if isinstance(module, nn.ModuleList) and len(module) and not re.search(r"\.\d+(\.|$)", path)
    }
    decoder = next((path for path, module in modules.items() if module is model.get_decoder()), "")
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    text = [path for path in outermost if f"{path}.".startswith(decoder) and len(outermost[path]) == count]
    linear = {f"{path}.weight" for path, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    head = model.get_output_embeddings()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return Model(
        sizes=sizes,
        matrices={name for name, parameter in model.named_parameters() if parameter.ndim == 2},
        linear={name for name in linear & set(sizes) if modules[name.removesuffix(".weight")] is not head},
        lists=outermost,
        text=TEXT_BLOCKS.get(family, text),
    )


def role(name: str) -> str:
    """Return the path to a module, without the indices in it but for one at its end: a layer of a ``Sequential``."""
    return re.sub(r"\.\d+(?=\.)", "", re.sub(r"\.(weight|bias)$", "", name))


families = pytest.mark.parametrize("family", BUILD)


@families
def test_the_layers_of_the_text_decoder_are_numbered(family: str) -> None:
    model = built(family)
    found = model.groups.layers
    blocks = model.blocks()
    assert {layer for layer in found.values() if isinstance(layer, int)} == set(blocks)
    for i, names in blocks.items():
        assert {found[name] for name in names} == {i}
    inside = {name for names in blocks.values() for name in names}
    assert not [name for name, layer in found.items() if isinstance(layer, int) and name not in inside]


@families
def test_the_blocks_of_other_towers_go_by_the_path_of_their_list(family: str) -> None:
    model = built(family)
    found = model.groups.layers
    for path, modules in model.lists.items():
        parallel = {p for p in model.lists if p.rpartition(".")[0] == path.rpartition(".")[0]}
        if path not in model.text:
            for i, block in enumerate(modules):
                own = {f"{p}.{i}" for p in parallel}
                plain = not list(block.children())
                assert {found[name] for name in model.beneath(f"{path}.{i}")} <= (own | {None} if plain else own)


@families
def test_a_kind_of_module_has_one_role_in_a_block(family: str) -> None:
    model, kinds = built(family), built(family).groups.kinds
    for names in model.blocks().values():
        matrices = [name for name in names if name in model.matrices]
        assert len({kinds[name] for name in matrices}) == len({role(name) for name in matrices})


@families
def test_a_role_has_one_kind_in_all_blocks_of_a_stack(family: str) -> None:
    model = built(family)
    groups = model.groups
    found: dict[tuple[str, str], set[str]] = {}
    for name, layer in groups.layers.items():
        if layer is not None:
            found.setdefault((split(layer)[0], role(name)), set()).add(groups.kinds[name])
    assert [kinds for kinds in found.values() if len(kinds) > 1] == []


@families
def test_kinds_of_the_text_decoder_are_its_alone(family: str) -> None:
    model = built(family)
    groups = model.groups
    own = {kind for name, kind in groups.kinds.items() if isinstance(groups.layers[name], int)}
    others = {kind for name, kind in groups.kinds.items() if not isinstance(groups.layers[name], int)}
    assert not own & others


@families
def test_a_lora_run_on_all_linear_modules_has_the_same_layers(family: str) -> None:
    model = built(family)
    whole = model.groups.layers
    assert group({name: model.sizes[name] for name in model.linear}).layers == {n: whole[n] for n in model.linear}


@families
def test_the_order_of_the_names_does_not_matter(family: str) -> None:
    model = built(family)
    names = list(model.sizes)
    random.Random(0).shuffle(names)
    assert group({name: model.sizes[name] for name in names}) == model.groups


def grouped(*names: str, **larger: int) -> dict[str, tuple[Any, str]]:
    """Group parameters of one element each, those under some modules of more."""
    found = group({name: larger.get(name.partition(".")[0], 1) for name in names})
    return {name: (found.layers[name], found.kinds[name]) for name in names}


@pytest.mark.parametrize(
    "expected",
    [
        {},
        {"weight": (None, "weight"), "head.bias": (None, "head"), "scale": (None, "scale")},
        {  # an ordinary model
            "model.embed_tokens.weight": (None, "embed_tokens"),
            "model.layers.0.self_attn.q_proj.weight": (0, "q_proj"),
            "model.layers.11.self_attn.q_proj.bias": (11, "q_proj"),
            "model.layers.11.input_layernorm.weight": (11, "input_layernorm"),
            "model.norm.weight": (None, "norm"),
            "lm_head.weight": (None, "lm_head"),
        },
        {  # GPT-2
            "transformer.h.3.attn.c_attn.weight": (3, "c_attn"),
            "transformer.h.3.attn.c_proj.weight": (3, "attn.c_proj"),
            "transformer.h.3.mlp.c_proj.bias": (3, "mlp.c_proj"),
        },
        {  # T5
            "shared.weight": (None, "shared"),
            "decoder.block.3.layer.0.SelfAttention.q.weight": (3, "SelfAttention.q"),
            "decoder.block.3.layer.1.EncDecAttention.q.weight": (3, "EncDecAttention.q"),
            "decoder.block.3.layer.2.DenseReluDense.wi.weight": (3, "wi"),
            "encoder.block.3.layer.0.SelfAttention.q.weight": ("encoder.block.3", "encoder.block.q"),
            "encoder.final_layer_norm.weight": (None, "encoder.final_layer_norm"),
            "decoder.final_layer_norm.weight": (None, "decoder.final_layer_norm"),
        },
        {  # a mixture whose first layer is dense: experts one by one and fused, a shared one, a state of no module
            "model.layers.0.mlp.down_proj.weight": (0, "mlp.down_proj"),
            "model.layers.1.mlp.experts.7.down_proj.weight": (1, "experts.down_proj"),
            "model.layers.1.mlp.shared_expert.down_proj.weight": (1, "shared_expert.down_proj"),
            "model.layers.1.mlp.experts.gate_up_proj": (1, "gate_up_proj"),
            "model.layers.1.mixer.A_log": (1, "A_log"),
        },
        {  # blocks in pieces, with norms beside them
            "transformer.attentions.0.q_lin.weight": (0, "q_lin"),
            "transformer.attentions.1.q_lin.weight": (1, "q_lin"),
            "transformer.ffns.0.lin1.weight": (0, "lin1"),
            "transformer.ffns.1.lin1.weight": (1, "lin1"),
            "transformer.layer_norm1.0.weight": (0, "layer_norm1"),
            "transformer.layer_norm1.1.weight": (1, "layer_norm1"),
        },
        {  # lists of plain matrices, one as long as the stack
            "model.layers.0.mlp.up_proj.weight": (0, "up_proj"),
            "model.layers.1.mlp.up_proj.weight": (1, "up_proj"),
            "model.altup_projections.0.weight": (None, "altup_projections.0"),
            "model.altup_projections.1.weight": (None, "altup_projections.1"),
            "model.scales.0": (None, "scales.0"),
        },
        {  # a Sequential in a block
            "transformer.h.0.ffn.0.weight": (0, "ffn.0"),
            "transformer.h.0.ffn.2.weight": (0, "ffn.2"),
        },
        {  # two stacks in one parent: their blocks have paths in common, so they are no pieces of one
            "model.decoder_layers.0.attn.q.weight": (0, "attn.q"),
            "model.decoder_layers.0.cross.q.weight": (0, "cross.q"),
            "model.encoder_layers.0.attn.q.weight": ("model.encoder_layers.0", "model.encoder_layers.q"),
        },
        {  # what lies outside the blocks gives way to what is inside
            "model.layers.0.mixer.norm.weight": (0, "norm"),
            "model.norm.weight": (None, "model.norm"),
        },
        {"0.attn.q.weight": (0, "q"), "1.attn.q.weight": (1, "q"), "2.weight": (2, "2")},  # blocks at the top
        {"0.weight": (None, "0"), "2.weight": (None, "2"), "2.bias": (None, "2")},  # no blocks at all
    ],
)
def test_names_alone_say_what_belongs_together(expected: dict[str, tuple[Any, str]]) -> None:
    assert grouped(*expected) == expected


def test_the_text_tower_is_the_main_one_whatever_its_size() -> None:
    names = ("vision.blocks.3.attn.q_proj.weight", "text.layers.3.attn.q_proj.weight")
    for sizes in ({"vision": 9}, {"text": 9}):
        assert list(grouped(*names, **sizes).values()) == [
            ("vision.blocks.3", "vision.blocks.q_proj"),
            (3, "q_proj"),
        ]


def test_of_two_towers_that_nothing_else_tells_apart_the_larger_is_the_main_one() -> None:
    names = ("talker.layers.3.q_proj.weight", "thinker.layers.3.q_proj.weight")
    assert [layer for layer, _ in grouped(*names, talker=9).values()] == [3, "thinker.layers.3"]
    assert [layer for layer, _ in grouped(*names, thinker=9).values()] == ["talker.layers.3", 3]


def test_layers_sort_by_stack_and_index() -> None:
    assert sorted(["b.h.2", 10, "a.h.10", 9, "a.h.9"], key=split) == [9, 10, "a.h.9", "a.h.10", "b.h.2"]
