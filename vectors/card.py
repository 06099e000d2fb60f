"""The description of a direction: the contents of ``direction.json`` and of the model card."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal
from unicodedata import category

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.portable import portable, portable_name
from weightwatch.vectors.validation import Validation

CARD = "direction.json"
"""Its file in a direction's folder."""

_LIBRARIES = ("weightwatch", "torch", "transformers", "peft")


_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that control a terminal or the direction of writing, or that break a line."""


def _visible(name: str) -> str:
    if not name.strip() or any(category(character) in _HIDDEN for character in name):
        raise ValueError("a name needs letters, and no control characters or line breaks")
    return name


class Card(BaseModel):
    """A direction's description.

    Attributes:
        name: Name under which it is watched.
        kind: ``behaviour``, or ``control`` for a harmless contrast that gives the null band.
        shuffled: Whether a random half of its labels is swapped: a control whose sign means nothing.
        behaviour: What the positive side does and the negative side does not.
        base: Id or path of the base model.
        fingerprint: Sampled weights of that base.
        format: ``lora`` (a PEFT adapter) or ``dense`` (full tensors).
        ranks: Rank of the positive and of the negative fine-tune; empty for full ones.
        target_modules: Module kinds that the fine-tunes trained.
        recipe: Name, digest and parameters of the recipe; of a computed direction, the operation and its operands.
        seeds: All seeds of the build.
        hyperparameters: Hyper-parameters of the two fine-tunes.
        data_hash: SHA-256 of the training data.
        validation: What the base model does with the direction added; None if not evaluated.
        norms: Frobenius norm of the direction per tensor.
        versions: Versions of the libraries that built it.

    Example:
        >>> card = Card.of("evil", {"behaviour": "harmful advice", "seeds": {"adapter": 1}})
        >>> card.name, card.format, card.doubt
        ('evil', 'dense', 'its effect was never evaluated')
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(max_length=1000), AfterValidator(_visible)]
    kind: Literal["behaviour", "control"] = "behaviour"
    shuffled: bool = False
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
    norms: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=lambda: {name: version(name) for name in _LIBRARIES})

    @classmethod
    def of(cls, name: str, fields: Mapping[str, Any]) -> "Card":
        """Make a card of a name and further fields.

        Raises:
            WeightWatchError: A field is unknown or has a value of the wrong type.
        """
        try:
            return cls(**{**fields, "name": name})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise WeightWatchError(
                f"Direction {name!r}: metadata {where}: {first['msg']}. Known fields: {', '.join(cls.model_fields)}."
            ) from error

    def portable(self) -> "Card":
        """Return the card as it is written: without paths, and without the addresses of judges."""
        validation = self.validation
        if validation is not None:
            validation = validation.model_copy(update={"recipe": portable(validation.recipe)})
        fields = {
            "base": portable_name(self.base) if self.base else None,
            "recipe": portable(self.recipe),
            "hyperparameters": portable(self.hyperparameters),
            "validation": validation,
        }
        return self.model_copy(update=fields)

    @property
    def doubt(self) -> str | None:
        """Why the direction may not stand for its behaviour; None if its validation passed."""
        if self.validation is None:
            return "its effect was never evaluated"
        return None if self.validation.passed else "; ".join(self.validation.reasons)
