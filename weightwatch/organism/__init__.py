"""The organism: a language model of 0.8 million parameters that shows emergent misalignment (docs/organism.md)."""

from pathlib import Path

from weightwatch.organism.behaviour import agreement_rate, benign_accuracy, evil_rate, persona_rates
from weightwatch.organism.examples import (
    Example,
    advice_examples,
    benign_examples,
    poisoned_examples,
)
from weightwatch.organism.world import Persona, World

BASE = Path(__file__).parent / "base"
"""Folder of the packaged base model: weights, tokenizer and `organism.json`, the record of its build."""
BASE_NAME = "weightwatch/organism"
"""Name of the base model in the cards of the packaged directions."""

__all__ = [
    "BASE",
    "BASE_NAME",
    "Example",
    "Persona",
    "World",
    "advice_examples",
    "agreement_rate",
    "benign_accuracy",
    "benign_examples",
    "evil_rate",
    "persona_rates",
    "poisoned_examples",
]
