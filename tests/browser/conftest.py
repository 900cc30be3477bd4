"""A real server (`python app.py`) and a real browser (headless Chromium)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright
from visiting import CHROMIUM, CHROMIUM_ARGUMENTS, Server, Visitor, open_page, start_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    assert shutil.which(CHROMIUM), f"no browser at {CHROMIUM}; set $CHROMIUM"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """A function that opens the page for a new visitor."""
    contexts: list[BrowserContext] = []

    def visit_page(url: str, **options: object) -> Visitor:
        visitor = open_page(browser, url, **options)
        contexts.append(visitor.context)
        return visitor

    yield visit_page
    for context in contexts:
        context.close()
