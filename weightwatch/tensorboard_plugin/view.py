"""What the page shows, as JSON: the runs, and the figures of one of them along one direction."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np

from weightwatch.config import OVER_CONTROLS, Figure, Rule
from weightwatch.report.charts import MOST, thinned
from weightwatch.rules.alert import Alert
from weightwatch.tensorboard_plugin.columns import METRICS, Block, Columns, Floats, Kind
from weightwatch.tensorboard_plugin.growing_record import GrowingRecord
from weightwatch.tensorboard_plugin.library import Library
from weightwatch.vectors.printable import printable

_KINDS: tuple[Kind, ...] = ("layers", "modules")
_SHARED: tuple[Figure, ...] = ("cosine", "reach_cosine")  # on one scale for all directions, controls included


def overview(library: Library) -> dict[str, Any]:
    """Return the runs, and what the page says where there are none."""
    shown = library.newest()
    found = library.found
    return {
        "runs": [{"name": name, "shown": name in shown, **_run(run)} for name, run in sorted(library.runs.items())],
        "searched": library.searched.is_set(),
        "log_dirs": [printable(folder) for folder in library.log_dirs.folders],
        "links": [printable(link) for link in found.links],
        "elsewhere": [
            {"events": printable(events), "output": None if output is None else printable(output)}
            for events, output in found.elsewhere.items()
        ],
    }


def figures(run: GrowingRecord, direction: str, metric: Figure) -> dict[str, Any]:
    """Return the figures of a run along a direction, thinned to ``MOST`` checks.

    Step 0, at which nothing has moved, is left out.

    Args:
        run: The run.
        direction: Name of the direction.
        metric: The figure.

    Returns:
        ``line`` for the whole model, with the band of the controls, and for the layers and the kinds of module a map
        with the figure and z. Arrays are float32 in base64, parts × checks.
    """
    columns, version, sampled = run.columns, run.version, run.sampled
    steps = list(columns.steps)
    first = 1 if steps[:1] == [0] else 0
    block = columns.blocks.get(direction, Block())
    controls = [] if direction in run.controls() or metric not in _SHARED else run.controls()
    return {
        "version": version,
        "sampled": sampled,
        "checks": len(steps) - first,
        "most": MOST,
        "line": _line(columns, block, metric, controls, steps, first),
        "checkpoints": _checkpoints(columns, steps),
        **{kind: _map(block, metric, kind, steps, first) for kind in _KINDS},
    }


def _run(run: GrowingRecord) -> dict[str, Any]:
    columns, config, controls = run.columns, run.config(), run.controls()
    names = list(columns.blocks)
    read = bool(names) or run.share == 1
    notes = run.notes + ([] if config is not None else ["Its settings can't be read, so no thresholds are shown."])
    return {
        "record": printable(run.folder),
        "version": run.version,
        "checks": len(columns.steps),
        "step": columns.steps[-1] if columns.steps else None,
        "time": printable(columns.time),
        "share": round(run.share, 3),
        "sampled": run.sampled,
        "directions": names,
        "controls": [name for name in names if name in controls],
        "metrics": [metric for metric in METRICS if metric not in OVER_CONTROLS or controls],
        "rules": [_rule(rule) for rule in config.rules] if config is not None else [],
        "alerts": [_alert(alert) for alert in run.alerts()],
        "notes": notes if read else [],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "alert": rule.alert,
        "direction": rule.direction,
        "metric": rule.metric,
        "whole": rule.scope == "model" and rule.baseline is None,  # it is in the chart
        "threshold": rule.threshold,
        "above": rule.above is not None,
    }


def _alert(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.alert,
        "direction": alert.direction,
        "state": alert.state,
        "step": alert.step,
        "text": alert.describe(),
    }


def _line(
    columns: Columns, block: Block, metric: Figure, controls: Sequence[str], steps: Sequence[int], first: int
) -> dict[str, Any]:
    values = _model(block, metric, len(steps))[first:]
    kept = np.array(thinned(np.nan_to_num(values).tolist()), dtype=int)
    found = [
        _model(columns.blocks[name], metric, len(steps))[first:][kept] for name in controls if name in columns.blocks
    ]
    band = np.stack(found) if found else np.zeros((0, len(kept)))
    return {
        "steps": [steps[first + at] for at in kept],
        "values": _numbers(values[kept]),
        "checkpoints": [printable(columns.checkpoints[first + at] or "") for at in kept],
        "low": _numbers(band.min(0)) if len(band) else None,
        "high": _numbers(band.max(0)) if len(band) else None,
    }


def _model(block: Block, metric: Figure, count: int) -> Floats:
    names, values = block.of(metric, "model", count)
    return values[:, 0] if names else np.full(count, np.nan, np.float32)


def _map(block: Block, metric: Figure, kind: Kind, steps: Sequence[int], first: int) -> dict[str, Any]:
    names, values = block.of(metric, kind, len(steps))
    values = values[first:]
    sizes = np.nan_to_num(np.abs(values))
    kept = np.array(thinned(sizes.max(1, initial=0).tolist()), dtype=int)
    z = block.of("z", kind, len(steps))[1][first:][kept]
    peaks = sizes.argmax(0) if len(values) else np.zeros(len(names), int)
    return {
        "parts": [printable(name) for name in names],
        "steps": [steps[first + at] for at in kept],
        "values": _base64(values[kept]),
        "z": _base64(z) if np.isfinite(z).any() else None,
        "largest": _numbers(values[peaks, np.arange(len(names))]) if len(values) else [],
        "largest_at": [steps[first + at] for at in peaks] if len(values) else [],
        "newest": _numbers(values[-1]) if len(values) else [],
    }


def _checkpoints(columns: Columns, steps: Sequence[int]) -> list[dict[str, Any]]:
    found = [(step, name) for step, name in zip(steps, columns.checkpoints, strict=False) if name]
    every = -(-len(found) // MOST) or 1
    return [{"step": step, "name": printable(name)} for step, name in found[::every]]


def _numbers(values: Any) -> list[float | None]:
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _base64(values: Floats) -> str:
    """Return values as parts × checks, row after row, in base64."""
    return b64encode(np.ascontiguousarray(values.T, dtype="<f4").tobytes()).decode("ascii")
