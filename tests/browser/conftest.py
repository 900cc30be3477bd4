"""A real server (`python app.py`) and a real browser (headless Chromium)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, expect, sync_playwright
from visiting import (
    CHROMIUM,
    CHROMIUM_ARGUMENTS,
    PATIENCE_MS,
    ROOT,
    SPEECH,
    Contexts,
    Server,
    Visitor,
    open_page,
    start_server,
)

log = logging.getLogger(__name__)

DRIVER = ExitStack()  # closes the browsers' driver

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def small_preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the preview's preset with small pictures, where only their number matters."""
    path = tmp_path_factory.mktemp("presets") / "small.toml"
    text = (ROOT / "presets" / "cpu-preview.toml").read_text()
    assert "704*704" in text
    path.write_text(text.replace("704*704", "256*256"))
    return str(path)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, small_preset: str) -> Iterator[Server]:
    # A test's run ends with its page: the next test need not wait for it.
    folder = tmp_path_factory.mktemp("server")
    running = start_server(folder, "--preset", small_preset, "--keep-running", "0")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def private(tmp_path_factory: pytest.TempPathFactory, small_preset: str) -> Iterator[Server]:
    """A server that shows each visitor only his own videos."""
    folder = tmp_path_factory.mktemp("private")
    running = start_server(folder, "--preset", small_preset, "--gallery", "private")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def keeping(tmp_path_factory: pytest.TempPathFactory, small_preset: str) -> Iterator[Server]:
    """A server whose runs go on without a page, the default if only this machine can reach it.

    There is one place in its queue.
    """
    folder = tmp_path_factory.mktemp("keeping")
    running = start_server(folder, "--preset", small_preset, "--queue-size", "1")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the usual preset; runs survive a reload, but end soon after a test has left them."""
    running = start_server(tmp_path_factory.mktemp("plain"), "--keep-running", "0.3")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., Browser]]:
    """A function that starts a Chromium, with arguments besides the usual ones; one driver per process."""
    assert shutil.which(CHROMIUM), f"no browser at {CHROMIUM}; set $CHROMIUM"
    playwright = DRIVER.enter_context(sync_playwright())

    def launch_chromium(*more: str) -> Browser:
        arguments = [*CHROMIUM_ARGUMENTS, *more]
        return playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)

    yield launch_chromium
    DRIVER.close()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """After the last test here: while the driver lives, its event loop counts as running in this thread."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        DRIVER.close()


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Browser]) -> Browser:
    return launch()


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> Contexts:
    return Contexts(browser)


@pytest.fixture
def visit(contexts: Contexts) -> Iterator[Callable[..., Visitor]]:
    """A function that opens the page for a new visitor."""
    with ExitStack() as visitors:

        def visit_page(url: str, **options: object) -> Visitor:
            visitor = visitors.enter_context(open_page(contexts, url, **options))
            visitors.callback(tell_the_end, visitor)
            return visitor

        yield visit_page


def tell_the_end(visitor: Visitor) -> None:
    """Log what the page shows."""
    if not visitor.page.is_closed():
        seen = visitor.page.locator("#status, .toast-wrap, #stop")
        shown = seen.evaluate_all("all => all.map(one => one.outerHTML)")
        log.warning("at the end the page showed %s; errors: %s", shown, visitor.errors)


@pytest.fixture(scope="session")
def long_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of speech, so that there is time to leave."""
    sound, rate = soundfile.read(SPEECH)
    path = tmp_path_factory.mktemp("speech") / "long.wav"
    soundfile.write(path, np.tile(sound, 5), rate)
    return path


@pytest.fixture(scope="session")
def half_minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute of speech."""
    sound, rate = soundfile.read(SPEECH)
    path = tmp_path_factory.mktemp("speech") / "half.wav"
    soundfile.write(path, np.tile(sound, 3)[: 32 * rate], rate)
    return path


@pytest.fixture(scope="session")
def short_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of buzzing in syllables."""
    t = np.arange(2 * 16_000) / 16_000
    sound = 0.4 * np.sign(np.sin(2 * np.pi * 140 * t)) * (np.sin(2 * np.pi * 3 * t) > 0)
    path = tmp_path_factory.mktemp("speech") / "buzz.wav"
    soundfile.write(path, sound, 16_000)
    return path
