"""The flag --notify_url: a command reports by HTTP how its videos ended."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from avatar.runtime.webhook import JobNews, Webhook


def add_notify(parser: argparse.ArgumentParser) -> None:
    """Add the flag."""
    parser.add_argument(
        "--notify_url",
        metavar="URL",
        help="when a video is made or has failed, POST a JSON object there: id, state, name, seconds",
    )


@contextmanager
def notifying(url: str | None) -> Iterator[Callable[[JobNews], None]]:
    """A function that posts news; on exit, waits until they are sent. Without a URL, does nothing.

    Raises: BadInput.
    """
    if url is None:
        yield lambda news: None
        return
    webhook = Webhook(url)
    try:
        yield webhook.post
    finally:
        webhook.close()
