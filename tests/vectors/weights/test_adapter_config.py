import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoHaConfig, LoraConfig

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import AdapterConfig, LoraSettings, NotFactorsError, is_adapter

GOOD = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"}


def stored(folder: Path, settings: Any) -> Path:
    (folder / "adapter_config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return folder


def test_the_settings_that_peft_writes_are_read(tmp_path: Path) -> None:
    LoraConfig(r=3, lora_alpha=5, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 7}).save_pretrained(tmp_path)
    settings = LoraSettings.read(tmp_path)
    assert [settings.ranks().of(module) for module in ("a.q_proj", "a.v_proj")] == [2, 3]
    assert [settings.alphas().of(module) for module in ("a.q_proj", "a.v_proj")] == [5, 7]
    assert settings.init_lora_weights is True
    LoHaConfig(r=3, base_model_name_or_path="org/base").save_pretrained(tmp_path)
    assert AdapterConfig.read(tmp_path).base_model_name_or_path == "org/base"
    with pytest.raises(NotFactorsError, match="is a LOHA adapter"):
        LoraSettings.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lora_alpha": ...}, "no lora_alpha"),
        ({"r": ...}, "no r,"),
        ({"lora_alpha": "8"}, "a wrong lora_alpha"),
        ({"lora_alpha": None}, "a wrong lora_alpha"),
        ({"lora_alpha": True}, "a wrong lora_alpha"),
        ({"lora_alpha": float("nan")}, "a wrong lora_alpha"),
        ({"r": 0}, "a wrong r "),
        ({"r": 4.5}, "a wrong r "),
        ({"alpha_pattern": ["a"]}, "a wrong alpha_pattern"),
        ({"alpha_pattern": {"a": "x"}}, r"a wrong alpha_pattern\.a"),
        ({"rank_pattern": {"a": -1}}, r"a wrong rank_pattern\.a"),
        ({"use_rslora": "no"}, "a wrong use_rslora"),
        ({"fan_in_fan_out": 1}, "a wrong fan_in_fan_out"),
        ({"base_model_name_or_path": 3}, "a wrong base_model_name_or_path"),
        ({"modules_to_save": "lm_head"}, "a wrong modules_to_save"),
    ],
)
def test_a_setting_that_is_missing_or_of_another_type_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    settings = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(WeightWatchError, match=rf"adapter_config\.json has {reason}.*Save the adapter again") as error:
        LoraSettings.read(stored(tmp_path, settings))
    assert not isinstance(error.value, NotFactorsError)  # damaged: PEFT is not asked to load it


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", "[" * 100_000, '{"r": ' + "1" * 5000 + "}"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(WeightWatchError, match=r"adapter_config\.json .*Save the adapter again"):
        LoraSettings.read(stored(tmp_path, text))


def test_patterns_are_tried_before_peft_searches_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightwatch.vectors.weights.patterns._SECONDS", 0.2)
    slow = r"(a|b|\w|.)+(\1)+[A-Z]"
    for setting, value in (("target_modules", slow), ("rank_pattern", {slow: 2})):
        settings = AdapterConfig.read(stored(tmp_path, {"peft_type": "LOHA", setting: value}))
        with pytest.raises(WeightWatchError, match=f"{setting} of adapter_config.json takes too long"):
            settings.require_quick(["model.layers.0.self_attn.q_proj.weight"])
    AdapterConfig.read(stored(tmp_path, {**GOOD, "target_modules": ["q_proj"]})).require_quick(["q_proj.weight"])


def test_merged_weights_beside_the_settings_of_an_adapter_are_no_adapter(tmp_path: Path) -> None:
    stored(tmp_path, GOOD)
    assert is_adapter(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert not is_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    assert is_adapter(tmp_path)
