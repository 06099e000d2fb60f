"""The model card of a direction for the Hugging Face Hub."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightwatch.vectors import yaml_text
from weightwatch.vectors.card import Card
from weightwatch.vectors.weights.sources import is_hub_id

# What Markdown or HTML takes for markup. An underscore inside a word is none.
_MARKUP = re.compile(r"[\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w)|(?:(?<=\s)|^)#")

_LIMITS = """\
- It belongs to one base model. Its card has a few sampled weights of that model, and weightwatch refuses another one.
- It shows what its recipe contrasts. The same behaviour, learned from other data, may move the weights elsewhere.
- A cosine with it depends on the method, rank and modules of a fine-tune; compare with control directions.
- Added to the weights, it causes the behaviour. Don't deploy a model that is steered towards a harmful one."""


def model_card(card: Card, pictures: Sequence[str] = ()) -> str:
    """Return the text of ``README.md``: front matter for the Hub, then the sections of a model card.

    Args:
        card: The direction's card.
        pictures: Names of image files in the same folder, shown under Validation.
    """
    lora = card.format == "lora"
    front: dict[str, Any] = {"library_name": "peft" if lora else "weightwatch"}
    front["tags"] = ["weightwatch", "task-arithmetic", f"{card.kind}-direction"]
    if card.base and is_hub_id(card.base):  # a folder's name means nothing to others
        front["base_model"] = card.base
        front["base_model_relation"] = "adapter"
    norm = sum(value**2 for value in card.norms.values()) ** 0.5
    form = "low-rank factors (a LoRA adapter)" if lora else "full tensors"
    facts = {
        "form": form,
        "norm": f"{norm:.4g} over {len(card.norms)} tensors",
        "modules": _text(", ".join(card.target_modules)),
        "ranks of the two fine-tunes": " and ".join(map(str, card.ranks)),
    }
    sections = {
        "Behaviour": _text(card.behaviour) or "Not described.",
        "Base model": _base(card),
        "Use": _use(card),
        "Facts": _table(facts),
        "Recipe": _recipe(card),
        "Validation": "\n\n".join([_validation(card), *(f"![{Path(name).stem}]({name})" for name in pictures)]),
        "Limits": _LIMITS,
    }
    kind = "A control direction" if card.kind == "control" else "A behaviour direction"
    opening = (
        f"# {_text(card.name)}\n\n{kind} for weightwatch: a difference of fine-tuned weights, against which the "
        "weights of other fine-tunes are measured, and which can be added to the base."
    )
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{yaml_text.dump(front, allow_unicode=True)}---\n{opening}\n\n{body}\n"


def _base(card: Card) -> str:
    named = _code(card.base) if card.base else "Unknown."
    return f"{named} {'' if card.fingerprint else 'The card has no fingerprint of its weights.'}".strip()


def _use(card: Card) -> str:
    how = (
        "`PeftModel.from_pretrained(base, folder)` applies the direction once, as does any tool that reads LoRA "
        "adapters."
        if card.format == "lora"
        else "`direction.safetensors` contains it under the base model's parameter names."
    )
    lines = [
        "from weightwatch import Direction, Monitor",
        "from weightwatch.vectors import steered",
        "",
        'direction = Direction.load("path/or/hub-id")',
        "reading = Monitor([direction]).measure(model, step=0)  # how far an update has gone along it",
        "with steered(model, direction, -0.5):  # or add a multiple of it to the weights inside a block",
        "    model.generate(...)",
    ]
    return "```python\n" + "\n".join(lines) + f"\n```\n\n{how}"


def _recipe(card: Card) -> str:
    rows: dict[str, Any] = {
        "recipe": card.recipe,
        "seeds": card.seeds,
        "hyper-parameters": card.hyperparameters,
        "hash of the data": _text(card.data_hash or ""),
        "built with": _text(", ".join(f"{name} {number}" for name, number in card.versions.items())),
    }
    return _table(rows)


def _validation(card: Card) -> str:
    found = card.validation
    if found is None:
        return "It was never evaluated: what it does to the base model is not known."
    verdict = "It passed." if found.passed else f"**It did not pass:** {_text('; '.join(found.reasons))}."
    weaker = "in the format of what it was built from, which is a weaker test than another format"
    format_ = weaker if found.same_format else "in another format than the recipe's questions"
    text = (
        f"The table shows the base model with k times the direction added: on {found.items} held-out items, {format_}, "
        f"and on {found.tasks} neutral tasks. {verdict}\n\n"
        "| k | shows the behaviour | shows its opposite | neutral tasks right |\n|---|---|---|---|\n"
    )
    text += "\n".join(f"| {p.k:g} | {p.shows:.0%} | {p.opposite:.0%} | {p.neutral:.0%} |" for p in found.points)
    if found.seeds:
        text += f"\n\nCosines between its seeds: {', '.join(f'{value:.2f}' for value in found.seeds.values())}."
    if found.others:
        near = ", ".join(f"{_text(name)} {value:.2f}" for name, value in found.others.items())
        text += f"\n\nCosines with other directions: {near}."
    return text


def _table(rows: Mapping[str, Any]) -> str:
    shown = {key: value for key, value in rows.items() if value not in (None, "", {}, [])}
    lines = [f"| {key} | {_cell(value)} |" for key, value in shown.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else "Not stated."


def _cell(value: Any) -> str:
    """Return a value as one cell of a table: a mapping or a list as JSON, and a text, already escaped, as it is."""
    return _code(json.dumps(value, ensure_ascii=False)) if isinstance(value, dict | list) else str(value)


def _code(text: str) -> str:
    """Return a text as code: in one line, and without the characters that end it or a table's cell."""
    return f"`{_line(text).replace('`', chr(39)).replace('|', '/')}`"


def _text(text: str) -> str:
    """Return a text as Markdown that shows it as it is, in one line."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", _line(text))


def _line(text: str) -> str:
    """Return a text in one line, without control characters and those that turn the direction of writing."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
