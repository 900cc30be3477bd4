"""A webhook: a server or a command reports by HTTP that a video is finished or has failed."""

from __future__ import annotations

import http.client
import json
import logging
import queue
import threading
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from avatar.errors import BadInput

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
TRIES, PAUSE_S = 3, 2.0
MOST_WAITING = 1000
CLOSE_S = 15.0


@dataclass(frozen=True)
class JobNews:
    """What is posted, as a JSON object. state: done | stopped | failed. seconds: of video that were made."""

    id: str
    state: str
    name: str
    seconds: float


class Webhook:
    """Posts news to one address, one after another in a thread of its own; a failure is logged, no more."""

    def __init__(self, url: str, pause_s: float = PAUSE_S) -> None:
        """Raises: BadInput for what is not a valid address."""
        self._url = check_url(url)
        self._pause_s = pause_s
        self._news: queue.Queue[JobNews | None] = queue.Queue(MOST_WAITING)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def post(self, news: JobNews) -> None:
        """Return at once; it is sent when those before it are."""
        try:
            self._news.put_nowait(news)
        except queue.Full:
            log.error("webhook: too many reports are queued, %s is dropped", news.id)

    def close(self) -> None:
        """Wait, for a while, until what was posted is sent."""
        self._closed.set()
        try:
            self._news.put_nowait(None)
        except queue.Full:
            log.error("webhook: the address does not keep up; the rest is not sent")
            return
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.error("webhook: the address does not answer; the rest is not sent")

    def _work(self) -> None:
        while (news := self._news.get()) is not None:
            for left in reversed(range(TRIES)):
                trouble = self._send(news)
                if trouble is None:
                    break
                if not left:
                    log.error("webhook: %s could not be reported: %s", news.id, trouble)
                    break
                self._closed.wait(self._pause_s)

    def _send(self, news: JobNews) -> str | None:
        """What went wrong, so that it is worth another try; None where it was taken, or refused for good."""
        body = json.dumps(asdict(news), ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "live-avatar"}
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with _OPENER.open(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                return f"the answer was {error.code}"
            log.error("webhook: %s was refused with %d", news.id, error.code)
            return None
        except (OSError, http.client.HTTPException) as error:
            return str(getattr(error, "reason", None) or error)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Posts go where they were meant to go, and nowhere else."""

    def redirect_request(self, *asked: Any, **more: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def check_url(url: str) -> str:
    """An http or https address. Raises: BadInput."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        good = good and parts.port != 0
    except ValueError:
        good = False
    if not good or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise BadInput(
            f"--notify-url {url[:80]!r} is not a valid address.",
            "Give one that begins with https:// or http://.",
        )
    return url
