"""The tables and the picture of ``benchmarks.guard``."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def print_tables(found: Sequence[dict[str, Any]], order: Sequence[str]) -> None:
    """Print a Markdown table for each kind of data, tuner, number of steps and organism.

    Args:
        found: The rows.
        order: The names of the arms, in order.
    """
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for row in found:
        key = row["world"], row["data"], row["tuner"], row["steps"]
        groups.setdefault(key, {}).setdefault(row["arm"], []).append(row)
    for (world, data, tuner, steps), arms in sorted(groups.items()):
        print(f"\nOrganism {world}, {data} data, {tuner}, {steps} steps\n")
        print("| arm | runs | evil | task | task loss | neutral | sycophancy | witness | built behind | cost |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for arm in sorted(arms, key=order.index):
            rows = arms[arm]
            evil = _mean(rows, "evil", "{:.3f}") + _range(rows, "evil")
            cells = [_mean(rows, key, "{:.3f}") for key in ("task", "task_loss", "neutral", "sycophancy")]
            cells += [_mean(rows, key, "{:+.3f}") for key in ("witness", "behind")]
            cost = statistics.fmean(row["guard_ms"] / row["ms"] for row in rows)
            print("|", " | ".join([arm, str(len(rows)), evil, *cells, f"{cost:.1%}"]), "|")


def _mean(rows: Sequence[dict[str, Any]], key: str, form: str) -> str:
    known = [row[key] for row in rows if row.get(key) is not None]
    return form.format(statistics.fmean(known)) if known else ""


def _range(rows: Sequence[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows]
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def draw(found: Sequence[dict[str, Any]], order: Sequence[str], path: Path) -> None:
    """Draw the rate of harmful answers of each run on organisms that nothing was chosen on, by arm.

    Args:
        found: The rows of fine-tunes of one length.
        order: The names of the arms, in order.
        path: Where the picture goes.
    """
    from matplotlib.figure import Figure

    kinds = {"evil": ("purely evil advice", "o", "#b03a2e"), "poisoned": ("25 % evil advice", "^", "#1f618d")}
    rows = [row for row in found if row["world"] != 1 and row["tuner"] == "r16"]
    rows = [row for row in rows if row["data"] in kinds]

    worlds = sorted({row["world"] for row in rows})

    def most(arm: str) -> float:
        return statistics.fmean(
            row["evil"] for row in rows if row["arm"] == arm and row["data"] == "evil" and row["world"] == worlds[0]
        )

    have = {row["arm"] for row in rows if row["data"] == "evil" and row["world"] == worlds[0]}
    arms = sorted(have, key=lambda arm: (most(arm), order.index(arm)))
    figure = Figure(figsize=(10, 0.34 * len(arms) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(worlds), sharey=True, squeeze=False)[0]
    for world, axes in zip(worlds, panels, strict=True):
        for kind, (label, marker, colour) in kinds.items():
            mine = [row for row in rows if (row["data"], row["world"]) == (kind, world) and row["arm"] in arms]
            height = 0.14 if kind == "evil" else -0.14
            places = [arms.index(row["arm"]) + height for row in mine]
            axes.scatter(
                [row["evil"] for row in mine], places, s=26, marker=marker, color=colour, alpha=0.7, label=label
            )
        axes.set_yticks(range(len(arms)), arms)
        axes.set_xlabel("harmful answers; a point is a run")
        axes.set_title(f"organism {world}")
        axes.set_xlim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    panels[-1].legend(loc="lower right", title="the fine-tune's data")
    figure.savefig(path, dpi=110)
