"""The first files of a project: commented settings, a training script, and the schema of the settings for editors."""

import json
from collections.abc import Sequence
from typing import Any

from weightwatch.config import Config
from weightwatch.rules.defaults import default_rules
from weightwatch.vectors import yaml_text
from weightwatch.vectors.direction import Direction

SETTINGS, SCRIPT, SCHEMA = "weightwatch.yaml", "train.py", "weightwatch.schema.json"
"""Names of the files."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of the settings, with which editors complete and underline them."""
    found = Config.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "Settings of weightwatch"}


def schema_text() -> str:
    """Return the JSON schema as text."""
    return json.dumps(schema(), indent=1) + "\n"


def settings(directions: Sequence[tuple[str, Direction]], controls: Sequence[tuple[str, Direction]], every: int) -> str:
    """Return commented settings as YAML, with a rule for each behaviour direction.

    The thresholds are cautious guesses, and say so: only a calibration on harmless runs tells how often they raise a
    false alarm.

    Args:
        directions: The directions to watch, each with the name or path that it was loaded from.
        controls: The controls, in the same way.
        every: Optimizer steps between checks.
    """
    parts = [
        f"# yaml-language-server: $schema={SCHEMA}",
        "# What weightwatch watches, how often, and when it raises an alert.",
        "",
        "# Names, paths or Hub ids. Each belongs to one base model.",
        _part(directions=[source for source, _ in directions]),
        "# Harmless contrasts to compare with. With them, rules can use over_controls and z.",
        _part(controls=[source for source, _ in controls])
        if controls
        else "# `weightwatch build --num-controls 9` puts some beside a direction, which are then watched with it.\n",
        "# Optimizer steps between checks. Checkpoints are always checked.",
        _part(every=every),
        "# The thresholds are cautious guesses. Watch three harmless runs with these settings, and compare with them:",
        f"#   weightwatch calibrate runs/* --baseline 3 --config {SETTINGS} --output {SETTINGS}",
        "# Without --baseline it takes 19 runs, and chooses thresholds with a known rate of false alarms.",
    ]
    rules = [
        {
            **rule.model_dump(include={"alert", "direction", "metric", "above"}),
            "for": rule.for_,
            "severity": "critical",
            "labels": {"threshold": "a guess, not calibrated"},
            "actions": ["log", "save"],
        }
        for rule in default_rules([direction for _, direction in [*directions, *controls]])
    ]
    channels = [
        "# Where alerts are sent. Each value names an environment variable; `weightwatch check --notify` tries it.",
        "# notify:",
        "#   - webhook: SLACK_WEBHOOK  # or email:, command:, apprise:",
        "#     body: slack             # json, slack or discord",
        "#     severity: warning       # the least that is sent",
    ]
    return "\n".join([*parts, _part(rules=rules), *channels, ""])


def script(model: str) -> str:
    """Return a training script with the callback in its place.

    Args:
        model: Folder or Hub id of the base model.
    """
    return f'''"""A fine-tune that weightwatch watches. Put in your own data and settings."""

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from weightwatch import WeightWatchCallback

trainer = SFTTrainer(
    {model!r},
    args=SFTConfig("runs/fine-tune", max_steps=200, save_steps=50, logging_steps=10),
    train_dataset=load_dataset("json", data_files="data.jsonl", split="train"),
    peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    callbacks=[WeightWatchCallback(config={SETTINGS!r})],
)
trainer.train()
'''


def _part(**content: Any) -> str:
    return yaml_text.dump(content)
