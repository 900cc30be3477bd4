"""Talk on the page: the visitor says who answers and by which model; what is typed is answered aloud."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect
from visiting import PORTRAIT, Server, Visitor, start_server

from tests.fixtures.speech_services import SpeechServices

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def chat() -> Iterator[SpeechServices]:
    running = SpeechServices("I am a pirate. ", "What are you?")
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(chat: SpeechServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--chat-url", chat.url, "--chat-model", "small, large", "--chat-prompt", "Be brief.")
    nowhere = ("--hear-url", "http://127.0.0.1:9/v1")
    running = start_server(tmp_path_factory.mktemp("talk"), "--preset", "cpu-preview", *options, *nowhere)
    yield running
    running.stop()


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_the_visitor_says_who_answers(chat: SpeechServices, server: Server, visit: Visit, locale: str):
    phone = {"width": 390, "height": 844}
    visitor = visit(f"{server.url}/?live", locale=locale, viewport=phone)
    page = visitor.page
    page.set_input_files("#portrait input[type=file]", PORTRAIT)
    page.wait_for_selector("#portrait img")
    assert not page.is_visible("[data-chat-part]"), "not in the mirror"
    page.click('[data-mode="talk"]')
    asks = page.locator(".live-chat summary")
    expect(asks).to_have_text({"en-US": "Who answers", "zh-CN": "由谁来回答"}[locale])
    asks.click()
    page.fill("[data-chat-part]", "You are a pirate.")
    page.select_option("[data-chat-model]", "large")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click(".live-go")
    page.wait_for_selector(".live-type textarea", state="visible")
    page.wait_for_function("window.liveSession.engineMs > 0")
    page.fill(".live-type textarea", "Who are you?")
    page.press(".live-type textarea", "Enter")
    expect(page.locator(".live-said li")).to_have_count(3)
    assert chat.asked[-1]["model"] == "large"
    assert chat.asked[-1]["messages"][0]["content"] == "Be brief.\n\nYou are a pirate."
    assert "What are you?" in page.inner_text(".live-said")
    page.fill("[data-chat-part]", "")
    page.locator("[data-chat-part]").blur()
    page.fill(".live-type textarea", "And now?")
    page.press(".live-type textarea", "Enter")
    expect(page.locator(".live-said li")).to_have_count(6)
    assert chat.asked[-1]["messages"][0]["content"] == "Be brief."
    page.click(".live-go")
    page.wait_for_function("!window.liveSession.token")
    assert visitor.errors == []
