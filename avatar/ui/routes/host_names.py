"""Under which host names the page may be requested."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection


def local_names(host: str, more: Collection[str] = ()) -> set[str] | None:
    """Host names of a server that listens on host: its own if only this machine can reach it, else None, any.

    more: names that a proxy on this machine uses. With names, a page from elsewhere whose host name was made
    to point to this machine is refused.
    """
    name = host.strip("[]").lower()
    try:
        local = name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = False
    if not local and not more:
        return None
    return {"localhost", "127.0.0.1", "::1", name, *(one.lower() for one in more)}
