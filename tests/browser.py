"""A headless Chromium without a network: opens pages from disk, presses keys in them, and says what they did."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import websocket

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
    "--hide-scrollbars",
]  # fmt: skip
UNDRAWN = """[...document.querySelectorAll('.circuitsvis-widget')]
    .filter(widget => !widget.firstElementChild || widget.querySelector(':scope > small')).map(widget => widget.id)"""


class Gone(RuntimeError):
    """What was asked cannot be answered: mostly the page that it was asked of was left meanwhile."""


class Page:
    """One tab. requests: the addresses that its pages asked for. console: what they complained of."""

    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=60)
        self.numbers = itertools.count(1)
        self.requests: list[str] = []
        self.console: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **facts) -> dict:
        """Send a command and wait for its answer, keeping what the page tells in between."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": facts}))
        told = self._until(lambda told: told.get("id") == number)
        if "error" in told:
            raise Gone(told["error"]["message"])
        return told["result"]

    def _until(self, wanted) -> dict:
        while True:
            told = json.loads(self.socket.recv())
            facts = told.get("params", {})
            match told.get("method"):
                case "Network.requestWillBeSent":
                    self.requests.append(facts["request"]["url"])
                case "Runtime.exceptionThrown":
                    self.console.append(str(facts["exceptionDetails"].get("exception", facts)))
                case "Log.entryAdded" if facts["entry"]["level"] in {"error", "warning"}:
                    self.console.append(facts["entry"]["text"])
                case "Runtime.consoleAPICalled" if facts["type"] in {"error", "warning"}:
                    self.console.append(str(facts["args"]))
            if wanted(told):
                return told

    def open(self, path: Path | str, width: int = 1200, dark: bool = False, scripts: bool = True) -> "Page":
        """Load a page from disk, or from an address of this machine, at a width of some pixels."""
        self.requests, self.console = [], []
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
        )
        shade = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[shade])
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        address = {"url": path if isinstance(path, str) else path.as_uri()}
        self.socket.send(json.dumps({"id": next(self.numbers), "method": "Page.navigate", "params": address}))
        self._until(lambda told: told.get("method") == "Page.loadEventFired")
        return self

    def run(self, script: str):
        """The value of an expression (awaited) in the page."""
        told = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, script: str, seconds: float = 15):
        """The value of an expression once it is true of the page."""
        end = time.monotonic() + seconds
        found = None
        while not found and time.monotonic() < end:
            with suppress(Gone):
                found = self.run(script)
            time.sleep(0.05)
        assert found, f"not within {seconds} s: {script}"
        return found

    def type(self, selector: str, text: str) -> None:
        """Put text into a box, as a person would."""
        self.run(f"document.querySelector({selector!r}).value = ''; document.querySelector({selector!r}).focus()")
        self.ask("Input.insertText", text=text)

    def undrawn(self) -> list[str]:
        """The ids of the CircuitsVis widgets that stay empty."""
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))")
        return self.run(UNDRAWN)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Save what is seen as a PNG."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    """A browser's one tab; the test is skipped where there is no Chromium."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no Chromium to open the pages with (looked for {', '.join(PROGRAMS)})")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        try:
            lines = iter(process.stderr.readline, "")
            port = next(
                found[1] for line in lines if (found := re.search(r"listening on ws://[^:]+:(\d+)/", line))
            )
            yield Page(_tab(int(port)))
        finally:
            process.kill()
            process.wait()


def _tab(port: int) -> str:
    """The address of the first tab."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
        return next(tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
