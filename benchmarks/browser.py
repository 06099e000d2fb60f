"""A TensorBoard of its own process, and the tab in a headless Chromium."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "needs the Debian packages chromium and chromium-driver"
PATIENCE = 120  # seconds
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
)
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/")


@contextmanager
def tensorboard(*arguments: str | Path) -> Iterator[str]:
    """Run TensorBoard on a free port; yields its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", "0", *map(str, arguments)]
    with TemporaryDirectory() as elsewhere:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=elsewhere)
        assert process.stdout is not None
        told = []
        try:
            for line in process.stdout:
                told.append(line)
                if found := _ADDRESS.search(line):
                    yield found[0]
                    return
            raise RuntimeError(f"TensorBoard has ended: {''.join(told)}")
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@contextmanager
def chromium(width: int = 1400, height: int = 1400) -> Iterator[webdriver.Chrome]:
    """Open a browser with an empty profile."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


class Tab:
    """The tab in a browser.

    Args:
        driver: The browser.
        address: Of TensorBoard.
    """

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        driver.get("about:blank")
        driver.get(f"{address}#weightwatch")
        self.wait(lambda: driver.find_elements(By.CSS_SELECTOR, "iframe"))
        driver.switch_to.frame(driver.find_element(By.CSS_SELECTOR, "iframe"))
        self.wait_until_ready()

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition is true, and return what it returns. Elements may be drawn anew meanwhile."""
        patience = WebDriverWait(self.driver, PATIENCE, 0.05, ignored_exceptions=(StaleElementReferenceException,))
        return patience.until(lambda _: condition())

    def wait_until_ready(self) -> None:
        """Wait until what was chosen is drawn."""
        self.wait(lambda: self.all("main[data-state=ready]"))

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that a selector of CSS finds."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Return the first element that a selector finds."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return the text of an element, as it is shown."""
        return self.one(selector).text

    def choose(self, control: str, value: str) -> None:
        """Choose a value in a list, and wait until it is drawn."""
        options = Select(self.one(f"#{control}")).options
        next(option for option in options if option.get_attribute("value") == value).click()
        self.wait_until_ready()

    def options(self, control: str) -> list[str]:
        """Return what a list has to choose from."""
        return [option.text for option in Select(self.one(f"#{control}")).options]

    def run(self, name: str) -> WebElement:
        """Return the checkbox of a run."""
        return next(box for box in self.all(".runs input") if box.get_attribute("value") == name)

    def tick(self, name: str) -> None:
        """Tick or untick the checkbox of a run, which is drawn anew when there is something new to read."""
        self.wait(lambda: self.run(name).click() is None)

    def rows(self) -> list[list[str]]:
        """Return the table of the largest values."""
        return self.script(
            "return [...document.querySelectorAll('#largest tbody tr')]"
            ".map((row) => [...row.cells].map((cell) => cell.textContent))"
        )

    def plot(self, selector: str) -> Sequence[dict[str, Any]]:
        """Return what plotly draws in an element: type, name, x and y of each trace."""
        return self.script(
            "return document.querySelector(arguments[0]).data.map("
            "({type, name, x, y, mode, line, text}) => ({type, name, x, y, mode, line, text}))",
            selector,
        )

    def script(self, text: str, *arguments: Any) -> Any:
        """Run JavaScript in the page, and return what it returns."""
        return self.driver.execute_script(text, *arguments)

    def complaints(self) -> list[str]:
        """Return the errors in the browser's log."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
