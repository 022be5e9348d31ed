"""A headless Chromium that opens a report from disk, and tells what its console said."""

from __future__ import annotations

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
HINT = "`make doctor FIX=1 DEV=1` or `make test` installs it"


def _program(*names: str) -> str:
    for name in names:
        if path := shutil.which(name):
            return path
    raise AssertionError(f"{names[0]} is missing: {HINT}")


@contextmanager
def browser(*, width: int = 1440, height: int = 900, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """A running browser. Fails with a hint, never skips, where Chromium or its driver is missing."""
    chromium, driver = _program(*CHROMIUM), _program("chromedriver", "chromium.chromedriver")
    options = Options()
    options.binary_location = chromium
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", f"--window-size={width},{height}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Chromium leaves its own files behind
        chrome = webdriver.Chrome(options=options, service=Service(driver, env={**os.environ, "TMPDIR": folder}))
        try:
            yield chrome
        finally:
            chrome.quit()


def open_report(chrome: webdriver.Chrome, page: Path, *, patience_s: float = 60) -> None:
    """Open a report and wait until its figures are drawn."""
    chrome.get(page.resolve().as_uri())
    WebDriverWait(chrome, patience_s).until(
        lambda driver: driver.execute_script("return document.documentElement.dataset.figures") == "drawn",
        f"the figures of {page} were not drawn; console: {console(chrome)}",
    )


def console(chrome: webdriver.Chrome) -> list[dict[str, Any]]:
    """Warnings and errors of the page's console since the last call."""
    return [row for row in chrome.get_log("browser") if row["level"] in ("WARNING", "SEVERE")]


def drawn(chrome: webdriver.Chrome) -> dict[str, int]:
    """Figure id -> number of drawn marks: points, lines, bars (SVG) or canvases with WebGL."""
    script = """
        const found = {};
        for (const plot of document.querySelectorAll('.plot')) {
            found[plot.id] = plot.querySelectorAll('.trace path, .traces path, .bars path, .point, path.js-line, .gl-canvas').length;
        }
        return found;
    """
    result: dict[str, int] = chrome.execute_script(script)
    return result


def screenshot(chrome: webdriver.Chrome, path: Path) -> None:
    """The whole page as PNG, however long it is."""
    size = chrome.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    shot = chrome.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))
