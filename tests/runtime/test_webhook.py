"""The webhook: what is posted, tried again or given up; and that nothing waits for it."""

from __future__ import annotations

import socket

import pytest

from avatar.errors import BadInput
from avatar.runtime.webhook import JobNews, Webhook, check_url
from tests.fixtures.listener import listening

MADE = JobNews("20260101-120000-0123456789", "done", "me.jpg · 你好.wav", 12.5)


def send(url: str, *news: JobNews) -> None:
    webhook = Webhook(url, pause_s=0.01)
    for one in news:
        webhook.post(one)
    webhook.close()


def test_news_arrive_as_json_in_their_order():
    failed = JobNews("b", "failed", "x", 0.0)
    with listening() as listener:
        send(listener.url, MADE, failed)
    assert listener.posted == [
        {"id": MADE.id, "state": "done", "name": "me.jpg · 你好.wav", "seconds": 12.5},
        {"id": "b", "state": "failed", "name": "x", "seconds": 0.0},
    ]
    assert set(listener.asked) == {"POST /hook?key=1 application/json; charset=utf-8"}


def test_a_server_in_trouble_is_asked_again():
    with listening(500, 503) as listener:
        send(listener.url, MADE)
    assert len(listener.posted) == 3


def test_after_three_tries_the_next_news_are_sent(caplog):
    with listening(500, 500, 500) as listener:
        send(listener.url, MADE, JobNews("next", "done", "x", 1.0))
    assert [one["id"] for one in listener.posted] == [MADE.id] * 3 + ["next"]
    assert f"{MADE.id} could not be reported: the answer was 500" in caplog.text


def test_a_refusal_is_final(caplog):
    with listening(404) as listener:
        send(listener.url, MADE)
    assert len(listener.posted) == 1
    assert "refused with 404" in caplog.text


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_news_go_nowhere_else(code):
    with listening() as elsewhere, listening(code) as listener:
        listener.moved = elsewhere.url
        send(listener.url, MADE)
    assert len(listener.posted) == 1
    assert elsewhere.asked == []


def test_an_address_where_nobody_listens_is_logged_and_no_more(caplog):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    send(f"http://127.0.0.1:{port}/", MADE)
    assert "could not be reported" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "ftp://a/b",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "https://a b/",
        "http://a:99999/",
        "http://me:secret@a/",
        "http://[::1",
        "http://a\n/",
        "javascript:alert(1)",
        "//a/b",
    ],
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(BadInput, match="is not a valid address"):
        check_url(url)
    with pytest.raises(BadInput):
        Webhook(url)
