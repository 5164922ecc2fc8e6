"""Open a page in headless Chromium without a network, and say what it drew, loaded and complained about."""

import dataclasses
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--virtual-time-budget=15000", "--enable-logging=stderr", "--v=0",
    "--dump-dom", "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip
PLACEHOLDER = "An interactive twin"
DRIVER = ("software WebGL", "GL Driver Message")  # notes of a machine without a graphics card, not of the page


@dataclasses.dataclass(frozen=True)
class Opened:
    """widgets: ids of all CircuitsVis widgets. undrawn: those still empty. console: complaints. loads: addresses."""

    widgets: list[str]
    undrawn: list[str]
    console: list[str]
    loads: list[str]
    text: str


def open_page(path: Path) -> Opened:
    """Run a page's scripts and look at the result; skips the test where there is no Chromium."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no Chromium to open the page with (looked for {', '.join(PROGRAMS)})")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    page = BeautifulSoup(done.stdout, "html.parser")
    widgets = page.select(".circuitsvis-widget")
    undrawn = [widget["id"] for widget in widgets if widget.find() is None or PLACEHOLDER in widget.get_text()]
    console = re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", done.stderr)
    loads = [
        tag.get("src") or tag.get("href") for tag in page.select("script[src], img[src], iframe[src], link[href]")
    ]
    return Opened(
        [widget["id"] for widget in widgets],
        undrawn,
        [line for line in console if not any(note in line for note in DRIVER)],
        [
            *loads,
            *re.findall(r"@import[^;]*|url\([^)]*\)", " ".join(style.text for style in page.select("style"))),
        ],
        page.get_text(),
    )
