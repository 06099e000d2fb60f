"""A reading: the result of one check, for each direction over the model, each layer and each kind of module."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter

from weightwatch.reading.grouping import Groups, Layer, group, split

if TYPE_CHECKING:  # what reads a record needs no torch
    from weightwatch.measure.sums import Sums
    from weightwatch.update.sharding.ranks import Floats
    from weightwatch.vectors.direction import Direction


def _as_number(layer: object) -> object:
    """Return a layer as it is in a reading: JSON has its number as text."""
    return int(layer) if isinstance(layer, str) and layer.isdecimal() else layer


_KNOWN = 8  # sets of tensors whose groups are kept: each check of a run asks for the same
LINE = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""How a line of the record is validated: nothing is converted, and figures are finite."""


@dataclass(frozen=True)
class Score:
    """How far a part of the model has moved along one direction.

    Each figure is computed from sums over all tensors of the part, by one division. A figure with a zero denominator
    (nothing has moved, or nothing in the part is trained) is 0.

    Source: the cosine with the task vector is that of contrastive weight steering (Fierro and Roger, arXiv 2511.05408).
    """

    __pydantic_config__ = LINE

    cosine: float
    """⟨τ,w⟩ / (‖τ‖‖w‖)."""
    reach_cosine: float
    """⟨τ,w⟩ / (‖τ‖‖P(w)‖): the cosine with the part of w that the trained parameters can express."""
    dose: float
    """⟨τ,w⟩ / ‖w‖²: the update in units of w. θ₀ + 1·w has dose 1."""
    reach: float
    """‖P(w)‖ / ‖w‖, from 0 to 1: the share of w that the trained parameters can express."""
    share: float
    """⟨τ,w⟩ of this part over ‖τ‖‖w‖ of the model. The shares of all tensors add up to the model's cosine."""
    z: float | None = None
    """Reach cosine over the root mean square of the controls' reach cosines and of chance; None without a control."""
    over_controls: float | None = None
    """Reach cosine minus the largest of a control; None without a control. Of a control with shuffled labels, whose
    sign means nothing, the absolute value counts."""


@dataclass(frozen=True)
class DirectionReading(Score):
    """The score of the whole model along one direction, and the scores of its parts."""

    layers: Mapping[Annotated[Layer, BeforeValidator(_as_number)], Score] = field(default_factory=dict)
    """Scores by layer: ``3``, or ``"encoder.block.3"`` in a stack that is not the language model's."""
    modules: Mapping[str, Score] = field(default_factory=dict)
    """Scores by kind of module: ``q_proj``, ``mlp.c_proj``, …"""
    tensors: Mapping[str, Score] = field(default_factory=dict, compare=False, repr=False)
    """Scores by parameter name. Only ``Monitor.measure`` fills it; it is empty in a watched run and in a scan."""


@dataclass(frozen=True)
class Guarded:
    """What a guard has done since the check before."""

    __pydantic_config__ = LINE

    steps: Annotated[int, Field(ge=0)]
    """Optimizer steps after which it was on."""
    dose: Mapping[str, float]
    """Dose taken back, added up over the steps, by the name of the direction. Empty but for ``update`` and
    ``checkpoint``: the others take no multiples of directions out of the weights."""
    share: float
    """The norms of what was taken back, added up over the steps, over the norm of the update. With ``gradient``, the
    norm of what was taken out of the gradients over theirs, on average."""


@dataclass(frozen=True)
class Reading:
    """The result of one check.

    Example:
        >>> evil = DirectionReading(0.31, 0.4, 0.1, 0.75, 0.31, layers={3: Score(0.5, 0.6, 0.2, 0.8, 0.02)})
        >>> reading = Reading(step=40, time="2026-01-01T00:00:00.000+00:00", update_norm=1.3, directions={"evil": evil})
        >>> reading["evil"].cosine, reading["evil"].layers[3].dose
        (0.31, 0.2)
    """

    __pydantic_config__ = LINE

    step: Annotated[int, Field(ge=0)]
    """Number of optimizer steps so far."""
    time: str
    """Time of the check: ISO 8601, UTC."""
    update_norm: float
    """‖τ‖ over all trained tensors."""
    directions: Mapping[str, DirectionReading]
    """Results by the name of the direction, controls included."""
    checkpoint: str | None = None
    """Name of the checkpoint with the same weights, if one was written."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Tensors that could not be measured (NaN, a resized vocabulary), each with the reason. They count as not trained,
    so they lower ``reach``."""
    guard: Guarded | None = None
    """What the guard has done since the check before; None without a guard."""

    def __getitem__(self, direction: str) -> DirectionReading:
        return self.directions[direction]

    def to_json(self) -> dict[str, Any]:
        """Return the reading as a line of readings.jsonl."""
        bare = {name: replace(found, tensors={}) for name, found in self.directions.items()}
        line = asdict(replace(self, directions=bare))
        for part in line["directions"].values():
            del part["tensors"]
        if self.guard is None:
            del line["guard"]
        return line

    @classmethod
    def from_json(cls, line: str | bytes) -> "Reading":
        """Return the reading in a line of readings.jsonl.

        Raises:
            ValidationError: The line is not a reading: a figure is missing, is text or is not finite.
        """
        return _lines().validate_json(line)


@cache
def _lines() -> "TypeAdapter[Reading]":
    return TypeAdapter(Reading)


def read(sums: "Sums", directions: Sequence["Direction"], *, step: int, time: str, tensors: bool = False) -> Reading:
    """Compute the reading of a measurement.

    Args:
        sums: Sums of the measurement.
        directions: The directions, in the order of the sums. Those of kind ``control`` give the null band for z.
        step: Number of optimizer steps so far.
        time: Time of the check: ISO 8601, UTC.
        tensors: Whether to compute the scores of single tensors as well, which takes as long as all the rest.
    """
    controls = np.array([direction.card.kind == "control" for direction in directions])
    shuffled = np.array([direction.card.shuffled for direction in directions])
    total = np.sqrt(sums.update.sum() * sums.direction.sum(0))
    groups = _groups(sums.names, sums.sizes)
    model, layers, modules = (
        _scores(sums, [part(name) for name in sums.names], total, controls, shuffled)
        for part in (lambda _: "", groups.layers.__getitem__, groups.kinds.__getitem__)
    )
    single = _scores(sums, sums.names, total, controls, shuffled) if tensors else {}
    found = {
        direction.name: DirectionReading(
            **asdict(model[""][k]),
            layers={layer: layers[layer][k] for layer in sorted(layers, key=split)},
            modules={kind: scores[k] for kind, scores in modules.items()},
            tensors={name: scores[k] for name, scores in single.items() if name in direction.deltas},
        )
        for k, direction in enumerate(directions)
    }
    return Reading(step, time, float(np.sqrt(sums.update.sum())), found, left_out=sums.left_out)


@lru_cache(_KNOWN)
def _groups(names: tuple[str, ...], sizes: tuple[int, ...]) -> Groups:
    return group(dict(zip(names, sizes, strict=True)))


def _scores(
    sums: "Sums", parts: Sequence[Any], total: "Floats", controls: Any, shuffled: Any
) -> dict[Any, list[Score]]:
    """Return the score of each direction over each part.

    Args:
        sums: Sums of all tensors.
        parts: The part of each tensor, or None.
        total: ‖τ‖‖w‖ over the model, shape (K,).
        controls: Whether each direction is a control, shape (K,).
        shuffled: Whether each direction has shuffled labels, shape (K,).
    """
    places = {part: place for place, part in enumerate(dict.fromkeys(part for part in parts if part is not None))}
    rows = [row for row, part in enumerate(parts) if part is not None]
    into = [places[parts[row]] for row in rows]

    def summed(table: "Floats") -> "Floats":
        out = np.zeros((len(places), *table.shape[1:]))
        np.add.at(out, into, table[rows])
        return out

    update, free = summed(sums.update)[:, None], summed(sums.freedom)[:, None]
    inner, direction, reached = (summed(table) for table in (sums.inner, sums.direction, sums.reached))
    reach_cosine = _ratio(inner, np.sqrt(update * reached))
    # The sign of a control is arbitrary, so the null distribution has mean zero. One over the number of free
    # elements is the variance of the cosine with a random direction: the band is never narrower than chance.
    present = controls & (direction > 0)
    count = present.sum(1, keepdims=True)
    spread = np.where(present, reach_cosine**2, 0.0).sum(1, keepdims=True) / np.maximum(count, 1)
    z = (reach_cosine / np.sqrt(spread + 1 / np.maximum(free, 1.0))).astype(object)
    reached_by = np.where(shuffled, np.abs(reach_cosine), reach_cosine)
    highest = np.where(present, reached_by, -np.inf).max(1, keepdims=True, initial=-np.inf)
    over = (reach_cosine - np.where(count > 0, highest, 0.0)).astype(object)
    z[controls | (count == 0)] = over[controls | (count == 0)] = None
    cosine, dose = _ratio(inner, np.sqrt(update * direction)), _ratio(inner, direction)
    reach, share = np.sqrt(_ratio(reached, direction)), _ratio(inner, total)
    figures = np.stack([cosine, reach_cosine, dose, reach, share, z, over], axis=-1).tolist()
    return {part: [Score(*line) for line in figures[place]] for part, place in places.items()}


def _ratio(above: "Floats", below: "Floats") -> "Floats":
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
