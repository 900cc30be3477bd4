"""Ranks started by torchrun, on one node or several: `torchrun … -m avatar worker`.

Rank 0 listens for clients and serves one at a time. The other ranks report their state through a store that
rank 0 opens, signed with the secret, and rank 0 forwards it. When a rank fails, torchrun ends the others;
with --max-restarts it restarts them all.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avatar.distributed.rank_process import Reporter, work
from avatar.errors import BadInput
from avatar.planning.layout import Layout
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.engine import FrameItem, FrameSource
from avatar.runtime.protocol import (
    Failed,
    Greeting,
    Link,
    PartCarry,
    Pulse,
    Quit,
    RequestFiles,
    StartRank,
    from_json,
    to_json,
)
from avatar.runtime.request_bundle import RequestBundle
from avatar.runtime.scratch import Scratch
from avatar.runtime.torchrun_client import SECRET, Address, prove
from avatar.runtime.worker_loop import HEARTBEAT_S, Service

if TYPE_CHECKING:
    from torch.distributed import Store

    from avatar.distributed.rendezvous import RankContext

log = logging.getLogger(__name__)

ACCEPT_AGAIN_S = 0.5  # pause after a connection that could not be accepted

Bundles = queue.SimpleQueue[RequestBundle]


@dataclass(frozen=True)
class TorchrunRank:
    """This process's identity, from the environment variables that torchrun sets."""

    rank: int
    world_size: int
    local_rank: int
    num_local: int
    attempt: str

    @classmethod
    def taken(cls) -> TorchrunRank:
        """Read the environment. Raises: BadInput when torchrun did not start this process."""
        env = os.environ
        try:
            return cls(
                int(env["RANK"]),
                int(env["WORLD_SIZE"]),
                int(env["LOCAL_RANK"]),
                int(env["LOCAL_WORLD_SIZE"]),
                env.get("TORCHELASTIC_RESTART_COUNT", "0"),
            )
        except (KeyError, ValueError) as error:
            raise BadInput(
                "This process was not started by torchrun: its environment is missing.",
                "Start it with: torchrun --nproc-per-node N -m avatar worker --preset NAME",
            ) from error


def serve(preset: Preset, weights: Path | None, roles: str, address: Address, key: bytes) -> None:
    """Run the rank that torchrun assigned to this process, until torchrun ends it.

    Raises: BadInput for a wrong world size, an address that other machines cannot reach, or a wrong secret.
    """
    place = TorchrunRank.taken()
    layout = Layout.of(preset)
    if layout.world_size != place.world_size:
        raise BadInput(
            f"Preset {preset.name} takes {layout.world_size} ranks; torchrun started {place.world_size}.",
            f"Start {layout.world_size} on all nodes together, or change --num_gpus_dit.",
        )
    if place.rank == 0 and place.num_local < place.world_size and address.is_loopback:
        raise BadInput(
            f"Ranks on other machines cannot reach {address}.",
            f"Name an address of this machine that they can reach with --listen HOST:{address.port}.",
        )
    store: Any = _meet(place, address, key)  # PyTorch's stubs lack clone()
    reports = SignedStore(store.clone(), key)
    start = StartRank(preset, weights, roles, place.rank, place.world_size, log.getEffectiveLevel())
    if place.rank:
        reporter = Reporter(place.rank, partial(_report, reports, place.rank))
        threading.Thread(target=_beat, args=(reporter,), name="heartbeat", daemon=True).start()
        work(start, reporter, partial(_context, start, place, store), iter(()))
    else:
        acceptor = Acceptor(preset, address, key)
        reporter = Reporter(0, acceptor.send, acceptor.settle)
        acceptor.open(reporter)
        threading.Thread(
            target=_relay, args=(reports, place.world_size, acceptor.send), name="relay", daemon=True
        ).start()
        work(start, reporter, partial(_context, start, place, store), acceptor.services(), acceptor.unpacking)


class SignedStore:
    """A store whose entries are signed with the secret, since anyone may reach the store itself."""

    def __init__(self, store: Store, key: bytes) -> None:
        self._store, self._key = store, key

    def set(self, name: str, text: str) -> None:
        """Write a text under a name."""
        self._store.set(name, f"{self._proof(name, text)} {text}")

    def get(self, name: str) -> str:
        """Wait for the text under a name. Raises: AuthenticationError if signed with another secret."""
        proof, _, text = self._store.get(name).decode(errors="replace").partition(" ")
        if not hmac.compare_digest(proof.encode(), self._proof(name, text).encode()):
            raise AuthenticationError(name)
        return text

    def has(self, name: str) -> bool:
        """Whether there is a text under a name."""
        return bool(self._store.check([name]))

    def _proof(self, name: str, text: str) -> str:
        return hmac.new(self._key, f"{name} {text}".encode(), hashlib.sha256).hexdigest()


def _meet(place: TorchrunRank, address: Address, key: bytes) -> Store:
    """The ranks' own store, opened by rank 0 at its --listen address.

    torchrun's store, which listens on every address of its machine, is used only to announce that address.
    Raises: BadInput.
    """
    from torch.distributed import PrefixStore, rendezvous

    from avatar.distributed.rendezvous import open_store, reach_store

    kept, _, _ = next(rendezvous("env://"))  # may contain entries of lost ranks
    announced = SignedStore(PrefixStore("avatar", kept), key)
    name = f"meeting-{place.attempt}"
    if place.rank:
        try:
            host, _, port = announced.get(name).rpartition(" ")
        except AuthenticationError as error:
            raise BadInput(
                f"Rank 0 has another ${SECRET}, or a stranger writes where ranks meet.",
                "Set the same on all nodes, and close torchrun's port to others.",
            ) from error
        return reach_store(host, int(port), place.world_size)
    try:
        store = open_store(address.host, place.world_size)
    except OSError as error:
        raise BadInput(
            f"Cannot listen at {address}: {error.strerror}.", "Choose another --listen address."
        ) from error
    announced.set(name, f"{_reached_as(address.host)} {store.port}")
    return store


def _reached_as(host: str) -> str:
    """The address at which other ranks reach rank 0, even if it listens on all addresses (0.0.0.0, ::)."""
    if host not in ("0.0.0.0", "::"):
        return host
    launcher = os.environ["MASTER_ADDR"]
    family, kind, protocol, _, address = socket.getaddrinfo(launcher, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        own = str(probe.getsockname()[0])
    return launcher if ip_address(own).is_loopback else own


def _context(start: StartRank, place: TorchrunRank, store: Store) -> RankContext:
    from torch.distributed import PrefixStore

    from avatar.distributed.rendezvous import RankContext, device_of

    device = device_of(place.local_rank, place.num_local, start.preset.requires.num_gpus == 0)
    return RankContext.take(place.rank, Layout.of(start.preset), device, PrefixStore("ranks", store))


def _report(reports: SignedStore, rank: int, message: Pulse | Failed) -> None:
    """Write a rank's message to the store, for rank 0 to forward."""
    failed = isinstance(message, Failed)
    reports.set(f"{'failed' if failed else 'pulse'}-{rank}", to_json(message))
    if failed:
        time.sleep(2 * HEARTBEAT_S)  # until rank 0 has forwarded it


def _beat(reporter: Reporter) -> None:
    while True:
        try:
            reporter.send(reporter.pulse())
        except RuntimeError as error:
            log.warning("rank 0 and its store are gone: %s", str(error).split("\n")[0])
            return
        time.sleep(HEARTBEAT_S)


def _relay(reports: SignedStore, world_size: int, send: Callable[[Any], None]) -> None:
    """Rank 0: forward new messages that the other ranks have written to the store."""
    last: dict[str, str] = {}
    while True:
        for name in [f"{kind}-{rank}" for rank in range(1, world_size) for kind in ("failed", "pulse")]:
            if not reports.has(name):
                continue
            try:
                text = reports.get(name)
                if text != last.get(name):
                    last[name] = text
                    send(from_json(text))
            except (AuthenticationError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.error("a report that is not from a rank is left out: %s", type(error).__name__)
        time.sleep(HEARTBEAT_S)


class Acceptor:
    """Accepts clients on rank 0, and serves one at a time until it disconnects."""

    def __init__(self, preset: Preset, address: Address, key: bytes) -> None:
        self._preset, self._key = preset, key
        try:
            self._listener = socket.create_server((address.host, address.port), family=address.family)
        except OSError as error:
            raise BadInput(
                f"Cannot listen at {address}: {error.strerror}.", "Choose another --listen address."
            ) from error
        self._served: queue.SimpleQueue[tuple[Service, Bundles]] = queue.SimpleQueue()
        self._bundles: Bundles = queue.SimpleQueue()  # from the current client
        self._now: Service | None = None
        self._entering = threading.Lock()
        log.info("rank 0 listens at %s", address)

    def open(self, reporter: Reporter) -> None:
        """Start accepting clients."""
        threading.Thread(target=self._accept, args=(reporter,), name="door", daemon=True).start()

    def send(self, message: Any) -> None:
        """Send a message to the current client, if there is one."""
        service = self._now
        if service is not None:
            service.send(message)

    def settle(self) -> None:
        """Wait until the current client has been sent all messages."""
        service = self._now
        if service is not None:
            service.settle()

    def services(self) -> Iterator[Service]:
        """The accepted clients, one after another."""
        while True:
            service, self._bundles = self._served.get()
            yield service

    def unpacking(self, source: FrameSource) -> FrameSource:
        """Wrap the source for requests whose files come in bundles."""
        return Unpacking(source, lambda: self._bundles.get(), self.send)

    def _accept(self, reporter: Reporter) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError as error:  # the client disconnected at once, or too many files are open
                log.warning("nobody could be let in: %s", error)
                time.sleep(ACCEPT_AGAIN_S)
                continue
            threading.Thread(target=self._let_in, args=(Link(line.detach()), reporter), daemon=True).start()

    def _let_in(self, link: Link, reporter: Reporter) -> None:
        try:
            prove(link, self._key, first=True)
        except (AuthenticationError, OSError, EOFError) as error:
            log.warning("somebody without the secret was turned away: %s", type(error).__name__)
            link.close()
            return
        with self._entering:
            is_taken = self._now is not None
            link.send(Greeting(self._preset, is_taken))
            if is_taken:
                link.close()
                return
            bundles: Bundles = queue.SimpleQueue()  # per client: a leftover bundle must not reach the next
            service = Service(link, on_hangup=self._vacate, on_other=partial(self._other, bundles))
            self._now = service
        service.start(reporter.pulse)  # from here on it may already have disconnected
        self._served.put((service, bundles))

    def _vacate(self) -> None:
        self._now = None

    def _other(self, bundles: Bundles, message: Any) -> None:
        if isinstance(message, RequestFiles):
            bundles.put(message.bundle)
        elif isinstance(message, Quit):
            log.error("whoever is attached found a rank lost: all end")
            os._exit(1)


class Unpacking:
    """A FrameSource whose requests' files come in bundles, one bundle per run."""

    def __init__(
        self, source: FrameSource, next_bundle: Callable[[], RequestBundle], send: Callable[[Any], None]
    ) -> None:
        self._source, self._next_bundle, self._send = source, next_bundle, send
        self.label = source.label

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource."""
        with Scratch() as folder:  # also removes folders left by killed ranks
            here = self._next_bundle().unpacked(request, folder)
            yield from self._source.frames(here, cancelled)
            if here.part is not None and here.part.leave is not None and here.part.leave.exists():
                self._send(PartCarry(here.part.leave.read_bytes()))

    def __getattr__(self, name: str) -> Any:
        """Forward everything else to the source, such as plan_for."""
        return getattr(self._source, name)

    def close(self) -> None:
        """See FrameSource."""
        self._source.close()
