"""What is known about a direction: the contents of ``direction.json`` and of the model card beside it."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.validation import Validation

CARD = "direction.json"
"""The file that it is stored in."""

_LIBRARIES = ("weightwatch", "torch", "transformers", "peft")


class Card(BaseModel):
    """A direction's description.

    Attributes:
        name: Name under which it is watched.
        kind: ``behaviour``, or ``control`` for a harmless contrast that gives the null band.
        behaviour: What the positive side does and the negative side does not, in words.
        base: Id or path of the base model.
        fingerprint: Sampled weights of that base.
        format: ``lora`` (a PEFT adapter) or ``dense`` (full tensors).
        ranks: Rank of the positive and of the negative fine-tune; empty for full ones.
        target_modules: Module kinds that the fine-tunes trained.
        recipe: Name and parameters of what it was built from.
        seeds: Every seed that went into it.
        hyperparameters: Of the two fine-tunes.
        data_hash: SHA-256 of the training data.
        validation: What was measured when the direction was applied; None means that nothing was.
        norms: Frobenius norm of the direction per tensor.
        versions: Of the libraries that built it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Literal["behaviour", "control"] = "behaviour"
    behaviour: str = ""
    base: str | None = None
    fingerprint: Fingerprint | None = None
    format: Literal["lora", "dense"] = "dense"
    ranks: list[int] = Field(default_factory=list)
    target_modules: list[str] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    data_hash: str | None = None
    validation: Validation | None = None
    norms: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=lambda: {name: version(name) for name in _LIBRARIES})

    @property
    def doubt(self) -> str | None:
        """Why nobody can rely on the direction to mean its behaviour; None where a check has shown that it does."""
        if self.validation is None:
            return "nothing was checked of what it does"
        return None if self.validation.passed else "; ".join(self.validation.reasons)

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """Return the card as a Hub model card."""
        from weightwatch.vectors.model_card import model_card

        return model_card(self, pictures)
