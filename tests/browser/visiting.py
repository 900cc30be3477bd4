"""A visitor of the page: opens it, chooses inputs, presses buttons, and waits for results."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import Browser, BrowserContext, Page

from tests.fixtures.server import ROOT, Server, start_server, wait_until

__all__ = ["ROOT", "Contexts", "Server", "Visitor", "open_page", "slowed", "start_server", "wait_until"]

PORTRAIT = ROOT / "assets" / "portraits" / "astronaut.jpg"
SPEECH = ROOT / "assets" / "speech" / "hello-en.flac"  # 12.6 s
# Without windows of its own, Chromium opens a page for half the work.
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or "/usr/bin/chromium"
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
PATIENCE_MS = 40_000  # for any wait: a slow machine must not fail a test


@dataclass
class Visitor:
    """One visitor's page."""

    page: Page
    context: BrowserContext
    errors: list[str]

    def choose(self, portrait: Path = PORTRAIT, speech: Path = SPEECH) -> None:
        """Upload a portrait and a speech, and wait until the page shows them."""
        self.page.set_input_files("#portrait input[type=file]", portrait)
        self.page.set_input_files("#speech input[type=file]", speech)
        self.page.wait_for_selector("#portrait img")
        self.wait_speech()

    def wait_speech(self) -> None:
        """Wait until the page shows the speech."""
        self.page.wait_for_selector("#speech .waveform-container, #speech audio", state="attached")

    def generate(self) -> None:
        self.page.click("#generate:enabled")

    def wait_state(self, *states: str) -> None:
        """Wait until the status is in one of these states."""
        either = ", ".join(f'#status .status[data-state="{state}"]' for state in states)
        self.page.wait_for_selector(either, timeout=PATIENCE_MS)

    def show_finished(self) -> None:
        """Press Replay, unless the live player ended first, and wait for the finished player."""
        self.page.evaluate("document.querySelector('#replay')?.click()")
        self.page.wait_for_function("document.querySelector('#final video')?.duration > 0.2")

    def toast(self) -> str:
        """The text of the toast that pops up."""
        self.page.wait_for_selector(".toast-body", timeout=PATIENCE_MS)
        return self.page.inner_text(".toast-wrap")


class Contexts:
    """Browser contexts for visitors, handed out again empty: Chromium keeps the scripts it has compiled."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._idle: dict[str, list[BrowserContext]] = {}

    @contextmanager
    def take(self, url: str, **options: object) -> Iterator[BrowserContext]:
        """A context in which nothing is stored for this URL; afterwards its pages are closed."""
        idle = self._idle.setdefault(json.dumps(options, sort_keys=True), [])
        if idle:
            context = idle.pop()
            _empty(context, url)
        else:
            context = self._browser.new_context(**options)  # type: ignore[arg-type]
            context.set_default_timeout(PATIENCE_MS)
        yield context
        for page in context.pages:
            page.close()
        context.set_offline(False)
        idle.append(context)


def _empty(context: BrowserContext, url: str) -> None:
    """Forget what pages of this URL have stored in a context, except for its cache."""
    context.clear_cookies()
    page = context.new_page()
    address = urlsplit(url)
    stored = {
        "origin": f"{address.scheme}://{address.netloc}",
        "storageTypes": "local_storage,indexeddb,service_workers,cache_storage",
    }
    context.new_cdp_session(page).send("Storage.clearDataForOrigin", stored)
    page.close()


ENGINE = "avatar.runtime.engine_process"


def processes(server: Server, module: str = "") -> list[psutil.Process]:
    """The server's children that run a module, or all of them."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in children if not module or module in command_of(child)]


def command_of(process: psutil.Process) -> list[str]:
    """A process's command line; [] if it has just ended, as ffmpeg's do."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


@contextmanager
def slowed(server: Server, share: float = 0.1) -> Iterator[None]:
    """Let the engine run for this share of the time, so that a run lasts while a test looks at it."""
    over = threading.Event()

    def hold_back() -> None:
        while not over.wait(0.3 * share):
            engines = processes(server, ENGINE)
            for act, seconds in ((psutil.Process.suspend, 0.3 * (1 - share)), (psutil.Process.resume, 0.0)):
                for engine in engines:
                    with suppress(psutil.NoSuchProcess):
                        act(engine)
                over.wait(seconds)

    thread = threading.Thread(target=hold_back)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def open_page(contexts: Contexts, url: str, **options: Any) -> Iterator[Visitor]:
    """Open the page for a new visitor, and wait until it is ready. options: of a browser context."""
    viewport = options.pop("viewport", {"width": 1280, "height": 900})
    scheme = options.pop("color_scheme", "light")
    with contexts.take(url, **options) as context:
        page = context.new_page()
        page.set_viewport_size(viewport)
        page.emulate_media(color_scheme=scheme)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None,
        )
        page.goto(url)
        page.wait_for_selector("#presets .card")
        page.wait_for_selector("#gauges .gauge")
        yield Visitor(page, context, errors)
