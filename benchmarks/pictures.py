"""The pictures of TensorBoard's tab in the documentation, from a run of the demo: ``python -m benchmarks.pictures``."""

import argparse
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchmarks.browser import MISSING, Tab, chromium, tensorboard

DOCS = Path(__file__).parent.parent / "docs"
COLOURS = 256  # in a file, which makes it much smaller


def take(log_dir: Path, folder: Path) -> None:
    """Write ``tab.png`` and ``tab-dark.png``."""
    with tensorboard("--logdir", log_dir) as address, chromium(1280, 1300) as driver:
        tab = Tab(driver, address)
        tab.wait(lambda: tab.all("#maps .main-svg"))
        save(tab, folder / "tab.png")
        tab.one("#dark").click()
        tab.choose("rows", "modules")
        tab.choose("order", "size")
        save(tab, folder / "tab-dark.png")


def save(tab: Tab, file: Path) -> None:
    """Write what the browser shows, in few colours."""
    tab.driver.switch_to.default_content()
    picture = Image.open(BytesIO(tab.driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    tab.driver.switch_to.frame(tab.driver.find_element("css selector", "iframe"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log-dir", type=Path, help="folder of a demo that is there already")
    asked = parser.parse_args()
    if MISSING:
        raise SystemExit(f"Taking pictures {MISSING}.")
    with tempfile.TemporaryDirectory() as elsewhere:
        log_dir = asked.log_dir or Path(elsewhere) / "weightwatch-demo"
        if asked.log_dir is None:
            subprocess.run([sys.executable, "-m", "weightwatch", "demo", "--output", str(log_dir)], check=True)
        take(log_dir, DOCS)
    for file in ("tab.png", "tab-dark.png"):
        print(f"docs/{file}: {(DOCS / file).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
