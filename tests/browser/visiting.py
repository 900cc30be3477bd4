"""A visitor of the page: opens it, chooses inputs, presses buttons, and waits for results."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page

from tests.fixtures.server import ROOT, Server, start_server, wait_until

__all__ = ["ROOT", "Server", "Visitor", "open_page", "start_server", "wait_until"]

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


def open_page(browser: Browser, url: str, **options: object) -> Visitor:
    """Open the page for a new visitor, and wait until it is ready."""
    options.setdefault("viewport", {"width": 1280, "height": 900})
    context = browser.new_context(**options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None
    )
    page.goto(url)
    page.wait_for_selector("#presets .card")
    page.wait_for_selector("#gauges .gauge")
    return Visitor(page, context, errors)
