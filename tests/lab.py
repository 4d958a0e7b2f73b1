"""A real JupyterLab on loopback, and a page of it in a browser without a window."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import requests
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

import berlin_chat

#: How long the slowest things may take on a machine that does much else, in seconds.
STARTING, WAITING = 60.0, 30.0
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
#: Why there can be no page here, "" where there can.
MISSING = "" if CHROMIUM and DRIVER else "there is no chromium with chromedriver: apt-get install chromium-driver"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps"),
    *("--window-size=1200,900", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)
TOKEN = "a-token-of-this-test"


@contextmanager
def lab(folder: Path) -> Iterator[str]:
    """Runs a JupyterLab with this folder; yields its address. It asks nobody for news."""
    for name in ("notebooks", "config/labconfig", "data", "runtime", "ipython"):
        (folder / name).mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (folder / "config/labconfig/page_config.json").write_text(json.dumps(quiet))
    known = {name: value for name, value in os.environ.items() if not name.startswith(("BERLIN_CHAT_", "JUPYTER"))}
    environment = {
        **known,
        "PYTHONPATH": str(Path(berlin_chat.__file__).parent.parent),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
        "NO_PROXY": "127.0.0.1",
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"),
        *("--ServerApp.port=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder / 'notebooks'}"),
        *("--LabApp.extension_manager=readonly", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
    ]
    with open(folder / "lab.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield _address(folder, process)
        finally:
            process.terminate()
            try:
                process.wait(WAITING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    def answers() -> str | None:
        assert process.poll() is None, (folder / "lab.log").read_text()
        for found in (folder / "runtime").glob("jpserver-*.json"):
            try:
                url = str(json.loads(found.read_text())["url"])
                if requests.get(f"{url}api", timeout=WAITING).ok:
                    return url
            except (ValueError, requests.ConnectionError):
                pass  # it is just being written, or does not listen yet
        return None

    return until(answers, STARTING)


def until(found: Callable[[], Any], seconds: float = WAITING) -> Any:
    """Asks again until something is found, and returns it."""
    end = time.monotonic() + seconds
    while True:
        try:
            if result := found():
                return result
        except (StaleElementReferenceException, IndexError):
            pass  # it is just being drawn anew
        assert time.monotonic() < end, f"not within {seconds} s: {getattr(found, '__doc__', None) or found}"
        time.sleep(0.02)


class Page:
    """One notebook in the browser."""

    def __init__(self, url: str, folder: Path, *codes: str) -> None:
        self._folder = folder
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = folder / "notebooks" / f"{folder.name}.ipynb"
        nbformat.write(notebook, path)
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for flag in (*FLAGS, f"--user-data-dir={folder / 'chromium'}"):
            options.add_argument(flag)
        self.browser = webdriver.Chrome(options, Service(DRIVER, log_output=str(folder / "chromedriver.log")))
        try:
            self.browser.get(f"{url}lab/tree/{path.name}?token={TOKEN}")
            until(lambda: len(self.cells()) == len(codes) and self._is_idle(), STARTING)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.browser.quit()

    def cells(self) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell")

    def _is_idle(self) -> bool:
        return bool(self.browser.find_elements(By.CSS_SELECTOR, ".jp-NotebookPanel-toolbar [data-status='idle']"))

    def type(self, index: int, text: str) -> None:
        """Types into a cell, key by key."""
        content = self.cells()[index].find_element(By.CSS_SELECTOR, ".cm-content")
        content.click()
        content.send_keys(text)

    def run(self, index: int) -> None:
        """Runs a cell as people do."""
        content = self.cells()[index].find_element(By.CSS_SELECTOR, ".cm-content")
        content.click()
        content.send_keys(Keys.CONTROL, Keys.ENTER)

    def press_stop(self) -> None:
        self.browser.find_element(By.CSS_SELECTOR, "[data-command='notebook:interrupt-kernel']").click()

    def output(self, index: int, css: str = "") -> str:
        """The text that a cell shows, or that of what the selector finds there; "" where there is none."""
        found = self.cells()[index].find_elements(By.CSS_SELECTOR, f".jp-Cell-outputArea {css}")
        return found[0].text if found else ""

    def places(self, index: int, css: str) -> list[tuple[int, int]]:
        """Where on the page the selector finds something in a cell's output."""
        found = self.cells()[index].find_elements(By.CSS_SELECTOR, f".jp-Cell-outputArea {css}")
        return [(one.rect["x"], one.rect["y"]) for one in found]

    def is_done(self, index: int) -> bool:
        prompt = self.cells()[index].find_element(By.CSS_SELECTOR, ".jp-InputPrompt").text
        return prompt not in ("[ ]:", "[*]:")

    def script(self, code: str, *arguments: Any) -> Any:
        """What JavaScript in the page returns."""
        return self.browser.execute_script(code, *arguments)  # type: ignore[no-untyped-call]

    def screenshot(self, index: int, name: str) -> Path:
        """Keeps a picture of the page with that cell, and tells where."""
        self.script("arguments[0].scrollIntoView()", self.cells()[index])
        path = self._folder / f"{name}.png"
        assert self.browser.save_screenshot(str(path))
        print(f"a screenshot is in {path}")
        return path
