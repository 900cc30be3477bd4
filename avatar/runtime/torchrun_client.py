"""Connect the engine's process to rank 0 of ranks that torchrun started: over TCP, with a shared secret.

The secret authenticates both ends; the traffic is not encrypted. Use it only within your own network.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from avatar.errors import AvatarError, BadInput, WorkerLost
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.child_process import hang_up
from avatar.runtime.local_ranks import Limits, SupervisedRanks
from avatar.runtime.protocol import Greeting, Link, PartCarry, Quit, RequestFiles, Run, RunLive
from avatar.runtime.request_bundle import RequestBundle
from avatar.runtime.supervisor import JOIN_S

SECRET = "AVATAR_SECRET"  # environment variable
FEWEST_LETTERS = 16
GREET_S = 10.0  # for the other side to authenticate
QUIT_S = 5.0  # for rank 0 to end
REACH_S = 30.0  # torchrun restarts lost ranks, which takes a while


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """ "node1:7861" Raises: BadInput."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise BadInput(f"{text!r} is not a valid address.", 'Write it like "node1:7861".')
        return cls(host.strip("[]"), int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or self.host == "::1" or self.host.startswith("127.")

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of sockets that listen there."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def secret() -> bytes:
    """The shared secret. Raises: BadInput when it is not set, or too easy to guess."""
    word = os.environ.get(SECRET, "")
    if len(word) < FEWEST_LETTERS:
        raise BadInput(
            f"${SECRET} is {'too short' if word else 'not set'}.",
            f"Set it to the same {FEWEST_LETTERS} letters or more for the ranks and for the client.",
        )
    return word.encode()


def prove(link: Connection, key: bytes, first: bool) -> None:
    """Authenticate both sides by the key, within GREET_S.

    Raises: AuthenticationError; EOFError, OSError when the other side leaves, or takes longer.
    """
    challenges = (deliver_challenge, answer_challenge)
    with hanging_up_after(GREET_S, link):
        for challenge in challenges if first else reversed(challenges):
            challenge(link, key)


@contextmanager
def hanging_up_after(limit_s: float, link: Connection) -> Iterator[None]:
    """Shut the link down if the body takes longer than limit_s."""
    with socket.socket(fileno=os.dup(link.fileno())) as line:
        timer = threading.Timer(limit_s, line.shutdown, (socket.SHUT_RDWR,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


class AttachedRanks(SupervisedRanks):
    """Ranks that torchrun started and supervises; rank 0 speaks for all of them."""

    def __init__(self, preset: Preset, address: Address, limits: Limits) -> None:
        """Raises: BadInput for a wrong secret, or ranks of another preset; WorkerLost without an answer."""
        super().__init__(preset, limits)
        self._address = address
        self._request: Request | None = None  # of the current run
        self._link: Connection | None = self._connected(secret())
        self._greet(preset)
        self._read(self._link)

    @property
    def links(self) -> Sequence[Connection]:
        """See SupervisedRanks."""
        return [] if self._link is None else [self._link]

    @property
    def alive(self) -> bool:
        """See SupervisedRanks."""
        return self._link is not None

    def end(self) -> None:
        """See SupervisedRanks. torchrun ends the ranks, and may restart them."""
        if self._link is not None and self._readers:
            with suppress(OSError):  # it is gone, or about to be
                self._link.send(Quit())
            until = time.monotonic() + QUIT_S
            while self._readers[0].is_alive() and time.monotonic() < until:
                self._keep_unread()
                self._readers[0].join(JOIN_S)
        self.leave()

    def leave(self) -> None:
        """See SupervisedRanks. The ranks stay, for the next client."""
        link, self._link = self._link, None
        if link is not None:
            hang_up(link)
            self._stop_reading()
            link.close()

    def fate_of(self, link: Connection) -> tuple[int, str]:
        """See SupervisedRanks."""
        return 0, f"at {self._address} closed its connection"

    def send(self, message: Any) -> None:
        """See SupervisedRanks; a run is preceded by its files."""
        if isinstance(message, Run):
            if isinstance(message, RunLive):
                raise AvatarError(
                    "Attached ranks do not support live sessions.", "Choose a preset of this machine."
                )
            self._request = message.request
            super().send(RequestFiles(RequestBundle.of(message.request)))
        super().send(message)

    def _take(self, message: Any) -> None:
        if not isinstance(message, PartCarry):
            return super()._take(message)
        part = self._request.part if self._request else None
        if part is not None and part.leave is not None:
            part.leave.write_bytes(message.carry)

    def _connected(self, key: bytes) -> Connection:
        """Connect to rank 0, retrying for REACH_S."""
        until = time.monotonic() + REACH_S
        while True:
            try:
                return self._reach(key)
            except AuthenticationError as error:
                raise BadInput(
                    f"The ranks at {self._address} have another ${SECRET}.", "Set the same on both sides."
                ) from error
            except (OSError, EOFError) as error:
                if time.monotonic() > until:
                    raise WorkerLost(
                        f"No ranks answer at {self._address}.",
                        "Start them with torchrun … -m avatar worker, and see that the port can be reached.",
                    ) from error
            time.sleep(1.0)

    def _reach(self, key: bytes) -> Connection:
        with socket.create_connection((self._address.host, self._address.port), GREET_S) as reached:
            reached.settimeout(None)
            reached.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            link = Link(reached.detach())
        if not link.poll(GREET_S):
            link.close()
            raise EOFError("no greeting")
        prove(link, key, first=False)
        return link

    def _greet(self, preset: Preset) -> None:
        """Read rank 0's greeting. Raises: BadInput when the ranks are busy or have another preset."""
        assert self._link is not None
        if not self._link.poll(GREET_S):
            raise WorkerLost(f"The ranks at {self._address} do not answer.", "See their log.")
        greeting: Greeting = self._link.recv()
        trouble = ""
        if greeting.is_taken:
            trouble = "are serving another client"
        elif greeting.preset.models != preset.models:
            trouble = f"hold the preset {greeting.preset.name}, or its settings differ"
        if trouble:
            self.leave()
            remedy = f"Choose {greeting.preset.name} with their settings, or wait until they are free."
            raise BadInput(f"The ranks at {self._address} {trouble}.", remedy)
