"""Records of harmless runs, written as a watched run writes them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.runs import reading
from weightwatch import Config
from weightwatch.setup import SETUP, Setup

LIKE: dict[str, Any] = {
    "trainer": "SFTTrainer",
    "method": "LORA",
    "rank": 16,
    "optimizer": "adamw_torch",
    "learning_rate": 1e-3,
    "steps": 40,
    "every": 10,
    "directions": {"evil": "3f2a"},
    "controls": {"style": "77b1"},
}


def record(folder: Path, values: Sequence[float], number: int = 0, rules: Sequence[Any] = (), **changes: Any) -> Path:
    """Write the record of a run whose figures along ``evil`` have these values, at steps 10, 20, …"""
    home = folder / "weightwatch"
    home.mkdir(parents=True)
    made = [reading(10 * place, value, over_controls=value) for place, value in enumerate([0.0, *values])]
    norms = [each.step / 10 + number / 1000 for each in made]
    dated = [replace(each, update_norm=norm if each.step else 0.0) for each, norm in zip(made, norms, strict=True)]
    (home / "readings.jsonl").write_text("".join(json.dumps(each.to_json()) + "\n" for each in dated))
    setup = {**LIKE, "steps": 10 * len(values), **changes}
    (home / SETUP).write_text(Setup.model_validate(setup).model_dump_json())
    (home / "config.yaml").write_text(Config.load({"directions": ["evil"], "rules": list(rules)}).to_yaml())
    return folder


BANK = [f"shuffled-{i}" for i in range(1, 9)]
BASELINE: dict[str, Any] = {
    "runs": 3,
    "setup": {**LIKE, "controls": dict.fromkeys(BANK, "77b1")},
    "direction": "evil",
    "steps": [10, 40],
    "figures": {"evil": [0.1, 0.1], **{name: [i / 10] * 2 for i, name in enumerate(BANK, 1)}},
}
"""The mean of runs that ``banked`` writes, if it is 0.1 along ``evil``."""


def banked(folder: Path, values: Sequence[float], number: int = 0, **changes: Any) -> Path:
    """Write the record of a run that was watched with eight controls, and ``run-<number>`` for its id.

    The figures along control i are i / 10, each ± 0.01 in turn, as those of other runs are for another number.
    """
    given = {"controls": dict.fromkeys(BANK, "77b1"), **changes}
    record(folder, values, number, **given)
    home = folder / "weightwatch"
    made = [json.loads(line) for line in (home / "readings.jsonl").read_text().splitlines()]
    for line in made:
        for i, name in enumerate(BANK, 1):
            figure = i / 10 + (0.01 if (i + number) % 2 else -0.01) if line["step"] else 0.0
            line["directions"][name] = reading(line["step"], figure).to_json()["directions"]["evil"]
        line["directions"]["evil"]["over_controls"] = line["directions"]["evil"]["reach_cosine"] - 0.8
    (home / "readings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    (home / "run.json").write_text(json.dumps({"run": f"run-{number}"}))
    return folder


def records(folder: Path, count: int = 19, **changes: Any) -> list[Path]:
    """Write the records of runs whose largest values are 0.01, 0.02, …, each in two consecutive checks."""
    return [record(folder / f"run-{n}", [0.0, n / 100, n / 100, 0.0], n, **changes) for n in range(1, count + 1)]
