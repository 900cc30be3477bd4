"""Addresses of the chat and speech recognition servers. Keys stay on this server."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from avatar.errors import AvatarError, BadInput

log = logging.getLogger(__name__)

CONNECT_S, ANSWER_S = 5.0, 30.0


class ServiceDown(AvatarError):
    """The chat or the speech recognition is unavailable; the session goes on.

    why, service, host, status: what the page's own texts say it with, see error_messages.message_of.
    """

    def __init__(
        self, message: str, remedy: str = "", *, why: str, service: str = "", host: str = "", status: int = 0
    ) -> None:
        super().__init__(message, remedy)
        self.why, self.service, self.host, self.status = why, service, host, status


@dataclass(frozen=True)
class ServiceAddress:
    """Address, model and key of a server. url: ends before /chat/completions; key: never shown."""

    url: str
    model: str
    key: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str, model: str, key: str, flag: str) -> ServiceAddress:
        """Check an address. Raises: BadInput for an invalid one."""
        url = url.strip().rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"{flag} is not a valid address.", "Give it as http://HOST:PORT/v1.")
        if "@" in parts.netloc or parts.query:
            raise BadInput(f"{flag} carries a password or a query.", "Give the key in the environment.")
        return cls(url, model, key)

    @property
    def host(self) -> str:
        """The host name, for messages."""
        return urlsplit(self.url).hostname or ""


def asking(address: ServiceAddress) -> Any:
    """An httpx.Client that sends the key."""
    import httpx

    headers = {"Authorization": f"Bearer {address.key}"} if address.key else {}
    return httpx.Client(timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S), headers=headers)


def refused(what: str, address: ServiceAddress, status: int) -> ServiceDown:
    """The error for a refused request; the server's own message is withheld, as it may contain the key."""
    reasons = {
        401: ("key", "does not accept the key"),
        403: ("key", "does not accept the key"),
        404: ("path", "has no such model or path"),
        429: ("rate", "is rate-limiting requests"),
    }
    why, reason = reasons.get(status, ("status", f"fails (status {status})"))
    return _down(what, address, why, reason, status)


def unreached(what: str, address: ServiceAddress, error: Exception) -> ServiceDown:
    """The error for a server that cannot be reached, or answers nonsense."""
    log.warning("the %s server %s: %s", what, address.host, type(error).__name__)
    return _down(what, address, "silent", f"does not answer ({type(error).__name__})")


def no_answer(what: str, address: ServiceAddress) -> ServiceDown:
    """The error for an answer without a word."""
    return _down(what, address, "empty", "gave no answer")


def _down(what: str, address: ServiceAddress, why: str, reason: str, status: int = 0) -> ServiceDown:
    return ServiceDown(
        f"The {what} server {address.host} {reason}.",
        "The session goes on; try again later.",
        why=why,
        service=what,
        host=address.host,
        status=status,
    )
