"""A server to visit, and what a visitor does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).resolve().parents[2]
PORTRAIT = ROOT / "assets" / "portraits" / "astronaut.jpg"
SPEECH = ROOT / "assets" / "speech" / "hello-en.flac"  # 12.6 s
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
PATIENCE_MS = 40_000  # for anything: a slow machine must not decide a test


@dataclass
class Server:
    """A running app.py. log: what it wrote; scratch: its temporary folder's parent."""

    url: str
    process: subprocess.Popen[bytes]
    outputs: Path
    scratch: Path
    log: Path

    def videos(self) -> list[Path]:
        """Finished files in the gallery."""
        return sorted(self.outputs.glob("[0-9]*/avatar-*.mp4"))

    def leftovers(self) -> list[Path]:
        """What lies in the folders of runs, and in drafts."""
        return [*self.scratch.glob("live-avatar-*/run-*"), *self.outputs.glob(".draft-*")]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=40)


def start_server(folder: Path, *arguments: str, outputs: Path | None = None, **environment: str) -> Server:
    """`python app.py` on a free port, up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    outputs = outputs or folder / "outputs"
    log = folder / "server.log"
    with log.open("wb") as writing:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--outputs", str(outputs), *arguments],
            cwd=ROOT,
            stdout=writing,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(scratch), **environment},
        )
    server = Server(f"http://127.0.0.1:{port}", process, outputs, scratch, log)
    wait_until(lambda: _is_up(server), "the page is up", 90)
    return server


def _is_up(server: Server) -> bool:
    assert server.process.poll() is None, server.log.read_text()
    try:
        with urllib.request.urlopen(f"{server.url}/", timeout=5):
            return True
    except OSError:
        return False


def wait_until(holds: Callable[[], object], what: str, seconds: float = 60) -> float:
    """Seconds until it holds."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begin


@dataclass
class Visitor:
    """One visitor's page."""

    page: Page
    context: BrowserContext
    errors: list[str]

    def choose(self, portrait: Path = PORTRAIT, speech: Path = SPEECH) -> None:
        """Upload both, and wait until the page shows them."""
        self.page.set_input_files("#portrait input[type=file]", portrait)
        self.page.set_input_files("#speech input[type=file]", speech)
        self.page.wait_for_selector("#portrait img")
        self.wait_speech()

    def wait_speech(self) -> None:
        """Until the page shows the speech."""
        self.page.wait_for_selector("#speech .waveform-container, #speech audio", state="attached")

    def generate(self) -> None:
        self.page.click("#generate:enabled")

    def wait_state(self, *states: str) -> None:
        """Until the status is in one of these states."""
        either = ", ".join(f'#status .status[data-state="{state}"]' for state in states)
        self.page.wait_for_selector(either, timeout=PATIENCE_MS)

    def show_finished(self) -> None:
        """Press Replay, unless the live player's end was quicker; until the finished player is there."""
        self.page.evaluate("document.querySelector('#replay')?.click()")
        self.page.wait_for_function("document.querySelector('#final video')?.duration > 0.2")

    def toast(self) -> str:
        """The text of the message that pops up."""
        self.page.wait_for_selector(".toast-body", timeout=PATIENCE_MS)
        return self.page.inner_text(".toast-wrap")


def open_page(browser: Browser, url: str, **options: object) -> Visitor:
    """The page, open and ready, for a new visitor."""
    options.setdefault("viewport", {"width": 1280, "height": 900})
    context = browser.new_context(**options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#presets .card")
    page.wait_for_selector("#gauges .gauge")
    return Visitor(page, context, errors)
