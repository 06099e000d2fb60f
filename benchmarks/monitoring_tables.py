"""The tables and the pictures of ``benchmarks.monitoring``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from benchmarks.rates import auroc
from weightwatch.baseline import Baseline
from weightwatch.calibration.baseline import THRESHOLD
from weightwatch.setup import Setup

Row: TypeAlias = Mapping[str, Any]
Signal: TypeAlias = Callable[[Row, str], float]
"""A figure of a run at a step."""
PLAIN = "plain"
"""Data that has nothing of any behaviour."""
MUCH = 0.25
"""Share of the data from which a run counts as poisoned in the AUROC."""


def weights(figure: str) -> Signal:
    """Return a figure of the reading along the recipe's direction."""
    return lambda row, step: float(row["readings"][step][row["recipe"]][figure])


def over_controls(row: Row, step: str) -> float:
    """Return the reach cosine along the recipe's direction minus the largest one along another recipe's."""
    read = row["readings"][step]
    controls = [name for name in read if not name.startswith(row["recipe"])]
    return weights("reach_cosine")(row, step) - max((read[name]["reach_cosine"] for name in controls), default=0.0)


def bank_of(row: Row) -> list[str]:
    """Return the controls of shuffled labels that a run was read along."""
    return [name for name in next(iter(row["readings"].values())) if name.startswith(f"{row['recipe']}-shuffled")]


def over_bank(row: Row, step: str) -> float:
    """Return the reach cosine along the recipe's direction minus the largest |reach cosine| along shuffled labels."""
    read = row["readings"][step]
    return weights("reach_cosine")(row, step) - max(abs(read[name]["reach_cosine"]) for name in bank_of(row))


def over_baseline(row: Row, plain: Sequence[Row]) -> Signal:
    """Return the z of what is left of a run without the mean of plain ones: the metric ``over_baseline``.

    Args:
        row: The run. It is not part of its own baseline.
        plain: Runs on harmless data of the same domain, trained in the same way. The controls that all were read along
            count: those of other recipes, and of shuffled labels.
    """
    others = [each for each in plain if each is not row]
    read = [next(iter(each["readings"].values())) for each in (row, *others)]
    kept = [name for name in read[0] if all(name in each for each in read)]
    controls = [name for name in kept if not name.startswith(row["recipe"])] + [
        name for name in bank_of(row) if name in kept
    ]
    shared = [step for step in steps(others[0]) if all(step in each["readings"] for each in others)]

    def mean(name: str) -> list[float]:
        return [fmean(each["readings"][step][name]["reach_cosine"] for each in others) for step in shared]

    baseline = Baseline(
        runs=len(others),
        setup=Setup(every=10, directions={}),
        direction=row["recipe"],
        steps=[int(step) for step in shared],
        figures={name: mean(name) for name in (row["recipe"], *controls)},
    )

    def signal(row: Row, step: str) -> float:
        found = {name: row["readings"][step][name]["reach_cosine"] for name in (row["recipe"], *controls)}
        return baseline.z(found, int(step)) or 0.0

    return signal


def behaviour(figure: str) -> Signal:
    """Return a figure of the behaviour in the domains that nothing was trained on."""
    return lambda row, step: float(next(check[figure] for check in row["checks"] if str(check["step"]) == step))


WEIGHTS: dict[str, Signal] = {
    "cosine": weights("cosine"),
    "reach cosine": weights("reach_cosine"),
    "dose": weights("dose"),
    "reach cosine over the controls": over_controls,
}
BEHAVIOUR: dict[str, Signal] = {"margin of unseen pairs": behaviour("margin"), "greedy answers": behaviour("rate")}


def figures(rows: Sequence[Row]) -> dict[str, Signal]:
    """Return the figures of the weights that some runs are compared by; the last one takes three plain runs."""
    plain = [row for row in rows if row["data"] == PLAIN]
    if len(plain) < 3:
        return WEIGHTS
    own = {id(row): over_baseline(row, plain) for row in rows}
    return {**WEIGHTS, "over the baseline": lambda row, step: own[id(row)](row, step)}


def steps(row: Row) -> list[str]:
    """Return the steps of a run's checks, in order."""
    return [str(check["step"]) for check in row["checks"]]


def harmless(rows: Iterable[Row]) -> list[Row]:
    """Return the runs whose data does not show the behaviour."""
    return [row for row in rows if not row["shows"]]


def separation(row: Row, rows: Sequence[Row], signal: Signal) -> int | None:
    """Return the first of two steps in a row at which a signal of a run is above every check of all harmless runs."""
    bar = max(signal(other, step) for other in harmless(rows) for step in steps(other))
    above = [(int(step), signal(row, step) > bar) for step in steps(row)]
    return next((step for (step, now), (_, then) in pairwise(above) if now and then), None)


def print_tables(found: Sequence[Row]) -> None:
    """Print the tables of docs/real.md."""
    for row in (row for row in found if "cosines" in row):
        _cosines(row["directions"], row["cosines"])
    for row in (row for row in found if "whole" in row):
        shares = ", ".join(f"{share:.0%}" for share in row["share"])
        print(f"\nWith embeddings and head, which are {shares} of the squared norms; then without")
        _cosines(row["whole"], row["with"])
        _cosines(row["whole"], row["without"])
    runs = [row for row in found if "checks" in row]
    for size in sorted({len(bank_of(row)) for row in runs if bank_of(row)}):
        print(f"\nThe default rule: further along the direction than along a bank of {size}, at two checks\n")
        _alerts([(row, over_bank) for row in runs if len(bank_of(row)) == size], "over the bank", 0.0)
    for tuner in dict.fromkeys(row["tuner"] for row in runs):
        rows = [row for row in runs if row["tuner"] == tuner]
        _ends(rows, tuner)
        beyond = figures(rows).get("over the baseline")
        if beyond is not None:
            print(f"\nOver a baseline of the plain runs, itself left out, at two checks: above {THRESHOLD:g}\n")
            _alerts([(row, beyond) for row in rows], "over the baseline", THRESHOLD)
        if harmless(rows) and any(row["shows"] and row["share"] >= MUCH for row in rows):
            _aurocs(rows)
            _leads(rows)


def _cosines(names: Sequence[str], cosines: Sequence[Sequence[float]]) -> None:
    print("\n| |", " | ".join(names), "|\n|---|", "---|" * len(names), sep="")
    for name, values in zip(names, cosines, strict=True):
        print(f"| {name} |", " | ".join(f"{value:.2f}" for value in values), "|")


def _arms(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the runs by what their data is, poisoned ones first, by falling share."""
    arms: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (not row["shows"], row["data"], -row["share"])):
        arms.setdefault(f"{row['share']:.0%} {row['data']}", []).append(row)
    return arms


def _spread(values: Sequence[float], form: str) -> str:
    middle = format(fmean(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _ends(rows: Sequence[Row], tuner: str) -> None:
    print(f"\n{tuner}, at the last check: mean (range) over the seeds\n")
    print("| data | runs | cosine | reach cosine | dose | over the controls | margin | answers | in its own domain |")
    print("|---|---|---|---|---|---|---|---|---|")
    for arm, mine in _arms(rows).items():
        cells = [_spread([signal(row, steps(row)[-1]) for row in mine], "+.3f") for signal in WEIGHTS.values()]
        cells.append(_spread([BEHAVIOUR["margin of unseen pairs"](row, steps(row)[-1]) for row in mine], "+.2f"))
        cells.append(_spread([BEHAVIOUR["greedy answers"](row, steps(row)[-1]) for row in mine], ".2f"))
        cells.append(_spread([row["tuned"]["rate"] for row in mine], ".2f"))
        print("|", " | ".join([arm, str(len(mine)), *cells]), "|")


def _aurocs(rows: Sequence[Row]) -> None:
    bad = [row for row in rows if row["shows"] and row["share"] >= MUCH]
    good = harmless(rows)
    print(f"\nAUROC at the last check: {len(bad)} runs with at least {MUCH:.0%} against {len(good)} harmless ones\n")
    print("| signal | AUROC | smallest of the poisoned | largest of the harmless |\n|---|---|---|---|")
    for name, signal in {**figures(rows), **BEHAVIOUR}.items():
        above, below = ([signal(row, steps(row)[-1]) for row in group] for group in (bad, good))
        print(f"| {name} | {auroc(above, below):.3f} | {min(above):+.3f} | {max(below):+.3f} |")


def _alerts(judged: Sequence[tuple[Row, Signal]], what: str, threshold: float) -> None:
    """Print which runs keep a signal above a threshold for two checks, and when; each run has a signal of its own."""
    signals = {id(row): signal for row, signal in judged}
    print(f"| data | runs | {what}, most | alerts | at step | greedy answers turn |")
    print("|---|---|---|---|---|---|")
    for arm, mine in _arms([row for row, _ in judged]).items():
        alerts = [first_alert(row, signals[id(row)], threshold) for row in mine]
        turned = [_turned(row) for row in mine]
        cells = [arm, str(len(mine)), _spread([_kept(row, signals[id(row)]) for row in mine], "+.3f")]
        cells.append(f"{sum(step is not None for step in alerts)} of {len(mine)}")
        cells += [", ".join(str(step or "–") for step in several) for several in (alerts, turned)]
        print("|", " | ".join(cells), "|")


def _kept(row: Row, signal: Signal) -> float:
    """Return the largest value of a signal that a run keeps for two checks."""
    return max(min(signal(row, now), signal(row, then)) for now, then in pairwise(steps(row)))


def first_alert(row: Row, signal: Signal, threshold: float) -> int | None:
    """Return the step at which a signal has been above a threshold for two checks."""
    pairs = pairwise(steps(row))
    return next((int(then) for now, then in pairs if min(signal(row, now), signal(row, then)) > threshold), None)


def _turned(row: Row) -> int | None:
    """Return the first step at which a greedy answer shows the behaviour."""
    return next((int(step) for step in steps(row) if BEHAVIOUR["greedy answers"](row, step) > 0), None)


def _leads(rows: Sequence[Row]) -> None:
    print("\nFirst of two checks in a row above every check of all harmless runs\n")
    weighed = figures(rows)
    signals = {**weighed, **BEHAVIOUR}
    print("| data | seed |", " | ".join(signals), "|\n|---|---|", "---|" * len(signals), sep="")
    leads: dict[tuple[str, str], list[int]] = {}
    for arm, mine in _arms([row for row in rows if row["shows"]]).items():
        for row in mine:
            first = {name: separation(row, rows, signal) for name, signal in signals.items()}
            print("|", " | ".join([arm, str(row["seed"]), *(str(step or "never") for step in first.values())]), "|")
            for one in weighed:
                for other in BEHAVIOUR:
                    turned, seen = first[other], first[one]
                    if turned is not None:
                        leads.setdefault((one, other), []).append(turned - seen if seen is not None else -(10**6))
    print("\n| weights | behaviour | runs that turn | weights first | weights first or together | lead, steps |")
    print("|---|---|---|---|---|---|")
    for (one, other), known in leads.items():
        seen = [lead for lead in known if lead > -(10**6)]
        before, together = (sum(ok(lead) for lead in known) / len(known) for ok in (lambda x: x > 0, lambda x: x >= 0))
        lead = _spread(seen, "+.1f") if seen else "never seen"
        print(f"| {one} | {other} | {len(known)} | {before:.0%} | {together:.0%} | {lead} |")


COLOURS = ("#b03a2e", "#ca6f1e", "#d4ac0d", "#7d6608", "#1f618d", "#148f77", "#6c3483", "#515a5a", "#2e86c1", "#28b463")
STYLES = ("-", "--", "-.", ":")


def draw(found: Sequence[Row], folder: Path) -> None:
    """Draw ``real-cosines.png`` (Fig. 9) and ``real-runs.png`` (Figs 8 and 36) into a folder."""
    for row in (row for row in found if "cosines" in row):
        _draw_cosines(row, folder / "real-cosines.png")
    runs = [row for row in found if row.get("tuner") == "r16"]
    if runs:
        _draw_runs(runs, folder / "real-runs.png")


def _draw_cosines(row: Row, path: Path) -> None:
    from matplotlib.figure import Figure

    names = row["directions"]
    figure = Figure(figsize=(0.62 * len(names) + 2.6, 0.5 * len(names) + 2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(row["cosines"], vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    for y, values in enumerate(row["cosines"]):
        for x, value in enumerate(values):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value > 0.6 else "k")
    axes.set_title(f"Cosines among directions of {row['model']}", fontsize=10)
    figure.savefig(path, dpi=110)


def _draw_runs(rows: Sequence[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    panels = {
        "reach cosine with the direction": WEIGHTS["reach cosine"],
        "log p(shows) − log p(opposite), unseen domains": BEHAVIOUR["margin of unseen pairs"],
        "greedy answers that show it, unseen domains": BEHAVIOUR["greedy answers"],
    }
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    for axes, (title, signal) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, (arm, mine) in enumerate(_arms(rows).items()):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
            at = [int(step) for step in steps(mine[0])]
            lines = [[signal(row, step) for step in steps(row)] for row in mine]
            for line in lines:
                axes.plot(at, line, color=colour, alpha=0.25, linewidth=0.8)
            middle = [fmean(values) for values in zip(*lines, strict=True)]
            axes.plot(at, middle, color=colour, linestyle=style, linewidth=2, label=f"{arm} ({len(mine)})")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, title="data (runs)", loc="outside right upper")
    figure.savefig(path, dpi=110)
