"""How quick the tab in TensorBoard is, in a browser, for a long run: ``python -m benchmarks.tab``."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.browser import MISSING, Tab, chromium, tensorboard
from benchmarks.machine import described

LAYERS, CHECKS, DIRECTIONS, EVERY = 100, 10_000, 8, 50
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FIGURES = ("cosine", "reach_cosine", "dose", "reach", "share", "z", "over_controls")


def write(folder: Path, checks: int) -> int:
    """Write the record of a run whose figures are drawn at random; returns its size in bytes."""
    score = ", ".join(f'"{figure}": %.17g' for figure in FIGURES)
    layers = ", ".join(f'"{number}": {{{score}}}' for number in range(LAYERS))
    modules = ", ".join(f'"{kind}": {{{score}}}' for kind in KINDS)
    one = f'{{{score}, "layers": {{{layers}}}, "modules": {{{modules}}}}}'
    directions = ", ".join(f'"direction-{number}": {one}' for number in range(DIRECTIONS))
    line = f'{{"step": %d, "time": "", "update_norm": 1.0, "directions": {{{directions}}}, "checkpoint": %s}}\n'
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with (folder / "readings.jsonl").open("w") as file:
        for check in range(1, checks + 1):
            step = check * EVERY
            figures = generator.normal(0, 0.1, DIRECTIONS * (1 + LAYERS + len(KINDS)) * len(FIGURES))
            checkpoint = "null" if check % 100 else f'"checkpoint-{step}"'
            file.write(line % (step, *figures.tolist(), checkpoint))
    return (folder / "readings.jsonl").stat().st_size


def measure(address: str, rounds: int) -> Iterator[str]:
    """Yield what the browser measures, in sentences."""
    with chromium() as driver:
        begin = time.perf_counter()
        tab = Tab(driver, address)
        yield f"Page ready, TensorBoard just started: {opened(tab):.2f} s."
        tab.wait(lambda: tab.all("#maps figure"))
        yield f"A sample is drawn, counted from the start of TensorBoard's page: {time.perf_counter() - begin:.0f} s."
        tab.wait(lambda: "are drawn: of each stretch" in tab.text("#status"))
        yield f"All of the record is read and drawn: {time.perf_counter() - begin:.0f} s."
        yield f"Page ready, record read: {spread([opened(Tab(driver, address)) for _ in range(rounds)])} s."
        tab = Tab(driver, address)
        names = [f"direction-{number}" for number in range(1, DIRECTIONS)]
        switches = [switched(tab, "direction", name) for name in names]
        yield f"Another direction: {spread(switches)} ms."
        yield f"A direction that was shown before: {spread([switched(tab, 'direction', name) for name in names])} ms."
        yield f"Kinds of module in place of layers: {switched(tab, 'rows', 'modules'):.0f} ms."


def opened(tab: Tab) -> float:
    """Return the seconds from the tab's navigation until its first view was drawn."""
    return tab.script("return performance.getEntriesByName('weightwatch-ready')[0].startTime") / 1000


def switched(tab: Tab, control: str, value: str) -> float:
    """Choose a value, and return the milliseconds until the browser has painted it."""
    return tab.driver.execute_async_script(
        """
        const [control, value, done] = arguments, main = document.querySelector("main");
        const begin = performance.now(), select = document.getElementById(control);
        new MutationObserver((_, observer) => {
          if (main.dataset.state !== "ready") return;
          observer.disconnect();
          requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
        }).observe(main, { attributeFilter: ["data-state"] });
        select.value = value;
        select.dispatchEvent(new Event("change"));
        """,
        control,
        value,
    )


def spread(values: list[float]) -> str:
    digits = 2 if max(values) < 10 else 0
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checks", type=int, default=CHECKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=Path, help="keep the record in this folder, or take the one that is there")
    asked = parser.parse_args()
    if MISSING:
        raise SystemExit(f"The benchmark {MISSING}.")
    with tempfile.TemporaryDirectory() as elsewhere:
        folder = asked.record or Path(elsewhere) / "log"
        with suppress(FileExistsError):
            write(folder / "long" / "weightwatch", asked.checks)
        size = (folder / "long" / "weightwatch" / "readings.jsonl").stat().st_size
        print(described(1))
        print(f"{LAYERS} layers × {asked.checks:,} checks × {DIRECTIONS} directions: {size / 1e9:.2f} GB of readings.")
        with tensorboard("--logdir", folder) as address:
            for line in measure(address, asked.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
