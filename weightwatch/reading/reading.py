"""A reading: what one check found, for each direction, over the model, each layer and each kind of module."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from weightwatch.measure.sums import Sums
from weightwatch.reading.grouping import Layer, group, split
from weightwatch.update.sharding.ranks import Floats
from weightwatch.vectors.direction import Direction


@dataclass(frozen=True)
class Score:
    """How far a part of the model moved along one direction. Sums over the part first, then one division.

    A figure whose denominator is zero (nothing moved yet, nothing trained there) is 0.
    """

    cosine: float
    """⟨τ,w⟩ / (‖τ‖‖w‖)."""
    reach_cosine: float
    """⟨τ,w⟩ / (‖τ‖‖P(w)‖): the cosine with the share of w that the trained parameters can express."""
    dose: float
    """⟨τ,w⟩ / ‖w‖²: steering units of w held in the update; θ₀ + 1·w has dose 1."""
    reach: float
    """‖P(w)‖ / ‖w‖, from 0 to 1."""
    share: float
    """This part's ⟨τ,w⟩ over the model's ‖τ‖‖w‖: the shares of all tensors add up to the model's cosine."""
    z: float | None = None
    """Reach cosine over the root mean square of the controls' and of chance; None where no control has weights."""


@dataclass(frozen=True)
class DirectionReading(Score):
    """The score over the whole model, and over its parts."""

    layers: Mapping[Layer, Score] = field(default_factory=dict)
    """By layer: ``3``, or in a further stack than the language model's own ``"encoder.block.3"``."""
    modules: Mapping[str, Score] = field(default_factory=dict)
    """By kind of module: ``q_proj``, ``mlp.c_proj``, …"""
    tensors: Mapping[str, Score] = field(default_factory=dict, compare=False, repr=False)
    """By parameter name. ``Monitor.measure`` fills it; the readings of a watched run or a scan leave it empty."""


@dataclass(frozen=True)
class Reading:
    """The result of one check.

    Example:
        ``reading["evil"].layers[3].cosine``
    """

    step: int
    """Optimizer steps since the training began."""
    time: str
    """When it was taken: ISO 8601, UTC."""
    update_norm: float
    """‖τ‖ over all trained tensors."""
    directions: Mapping[str, DirectionReading]
    """By name, controls included."""
    checkpoint: str | None = None
    """Name of the checkpoint that holds these very weights, if one was written."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Tensors that could not be measured (NaN, a resized vocabulary), each with the reason. They count as not trained,
    so that ``reach`` shows what is missing."""

    def __getitem__(self, direction: str) -> DirectionReading:
        return self.directions[direction]

    def to_json(self) -> dict[str, Any]:
        """Return the line of readings.jsonl."""
        bare = {name: replace(found, tensors={}) for name, found in self.directions.items()}
        line = asdict(replace(self, directions=bare))
        for part in line["directions"].values():
            del part["tensors"]
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> "Reading":
        """Read back a line of readings.jsonl.

        Raises:
            KeyError, TypeError: It is not such a line.
        """
        directions = {}
        for name, part in line["directions"].items():
            layers = {int(k) if k.isdecimal() else k: Score(**value) for k, value in part["layers"].items()}
            modules = {key: Score(**value) for key, value in part["modules"].items()}
            directions[name] = DirectionReading(**{**part, "layers": layers, "modules": modules})
        return cls(**{**line, "directions": directions})


def read(sums: Sums, directions: Sequence[Direction], *, step: int, time: str, tensors: bool = False) -> Reading:
    """Turn the sums of a measurement into a reading.

    Args:
        sums: Of the directions, in their order.
        directions: Those whose card says ``control`` give the null band of the others' z.
        step: Optimizer steps since the training began.
        time: ISO 8601.
        tensors: Whether to score single tensors, too, which takes as long as all the rest.
    """
    controls = np.array([direction.card.kind == "control" for direction in directions])
    total = np.sqrt(sums.update.sum() * sums.direction.sum(0))
    groups = group(dict(zip(sums.names, sums.sizes, strict=True)))
    model, layers, modules = (
        _scores(sums, [part(name) for name in sums.names], total, controls)
        for part in (lambda _: "", groups.layers.__getitem__, groups.kinds.__getitem__)
    )
    single = _scores(sums, sums.names, total, controls) if tensors else {}
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


def _scores(sums: Sums, parts: Sequence[Any], total: Floats, controls: Any) -> dict[Any, list[Score]]:
    """Return the score of each direction over each part.

    Args:
        sums: Of all tensors.
        parts: The part that each tensor belongs to; None where it belongs to none.
        total: ‖τ‖‖w‖ over the model, shape (K,).
        controls: Which directions are controls, shape (K,).
    """
    places = {part: place for place, part in enumerate(dict.fromkeys(part for part in parts if part is not None))}
    rows = [row for row, part in enumerate(parts) if part is not None]
    into = [places[parts[row]] for row in rows]

    def summed(table: Floats) -> Floats:
        out = np.zeros((len(places), *table.shape[1:]))
        np.add.at(out, into, table[rows])
        return out

    update, free = summed(sums.update)[:, None], summed(sums.freedom)[:, None]
    inner, direction, reached = (summed(table) for table in (sums.inner, sums.direction, sums.reached))
    reach_cosine = _ratio(inner, np.sqrt(update * reached))
    # The sign of a control is arbitrary, so its null distribution is centred on zero. One over the number of
    # free elements is the variance of the cosine with a random direction: no band is narrower than chance.
    present = controls & (direction > 0)
    count = present.sum(1, keepdims=True)
    spread = np.where(present, reach_cosine**2, 0.0).sum(1, keepdims=True) / np.maximum(count, 1)
    z = (reach_cosine / np.sqrt(spread + 1 / np.maximum(free, 1.0))).astype(object)
    z[controls | (count == 0)] = None
    cosine, dose = _ratio(inner, np.sqrt(update * direction)), _ratio(inner, direction)
    reach, share = np.sqrt(_ratio(reached, direction)), _ratio(inner, total)
    figures = np.stack([cosine, reach_cosine, dose, reach, share, z], axis=-1).tolist()
    return {part: [Score(*line) for line in figures[place]] for part, place in places.items()}


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
