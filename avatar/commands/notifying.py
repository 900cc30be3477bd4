"""The flag --notify_url: a command reports by HTTP what became of its videos."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from avatar.runtime.webhook import News, Webhook


def add_notify(parser: argparse.ArgumentParser) -> None:
    """The flag."""
    parser.add_argument(
        "--notify_url",
        metavar="URL",
        help="when a video is made or has failed, POST a JSON object there: id, state, name, seconds",
    )


@contextmanager
def notifying(url: str | None) -> Iterator[Callable[[News], None]]:
    """What posts news, and sends them before it is left; nothing without an address. Raises: BadInput."""
    if url is None:
        yield lambda news: None
        return
    webhook = Webhook(url)
    try:
        yield webhook.post
    finally:
        webhook.close()
