"""Ranks that torchrun started, on one node or several: `torchrun … -m avatar worker`.

Rank 0 listens for whoever attaches, one at a time. The others tell their state through a store that it
opens, signed with the secret, and it passes that on. When one fails torchrun ends the others; with
--max-restarts it starts anew.
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
    Left,
    Link,
    Pulse,
    Quit,
    Shipped,
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

ACCEPT_AGAIN_S = 0.5  # after a caller who could not be let in

Bundles = queue.SimpleQueue[RequestBundle]


@dataclass(frozen=True)
class TorchrunRank:
    """What torchrun says of this process, in its environment."""

    rank: int
    world_size: int
    local_rank: int
    num_local: int
    attempt: str

    @classmethod
    def taken(cls) -> TorchrunRank:
        """Raises: BadInput when torchrun did not start this process."""
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
                "This is no rank: torchrun's environment is missing.",
                "Start it with: torchrun --nproc-per-node N -m avatar worker --preset NAME",
            ) from error


def serve(preset: Preset, weights: Path | None, roles: str, address: Address, key: bytes) -> None:
    """Be the rank that torchrun says, until it ends this process.

    Raises: BadInput for a wrong world size, an address that other machines cannot reach, or another secret.
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
    store: Any = _meet(place, address, key)  # PyTorch's stubs know no clone()
    reports = Signed(store.clone(), key)
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


class Signed:
    """A store whose texts prove that their writer knows the secret: anybody may reach the store itself."""

    def __init__(self, store: Store, key: bytes) -> None:
        self._store, self._key = store, key

    def set(self, name: str, text: str) -> None:
        """Write a text under a name."""
        self._store.set(name, f"{self._proof(name, text)} {text}")

    def get(self, name: str) -> str:
        """The text under a name, waited for. Raises: AuthenticationError for another secret's."""
        proof, _, text = self._store.get(name).decode(errors="replace").partition(" ")
        if not hmac.compare_digest(proof.encode(), self._proof(name, text).encode()):
            raise AuthenticationError(name)
        return text

    def has(self, name: str) -> bool:
        """Whether something is there."""
        return bool(self._store.check([name]))

    def _proof(self, name: str, text: str) -> str:
        return hmac.new(self._key, f"{name} {text}".encode(), hashlib.sha256).hexdigest()


def _meet(place: TorchrunRank, address: Address, key: bytes) -> Store:
    """The ranks' own store, opened by rank 0 where it was asked to listen.

    Torchrun's, which listens at every address of its machine, carries no more than where to find it.
    Raises: BadInput.
    """
    from torch.distributed import PrefixStore, rendezvous

    from avatar.distributed.rendezvous import open_store, reach_store

    kept, _, _ = next(rendezvous("env://"))  # it may hold what lost ranks have left
    announced = Signed(PrefixStore("avatar", kept), key)
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
    """How other ranks reach the host at which rank 0 listens, which may stand for all its addresses."""
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


def _report(reports: Signed, rank: int, message: Pulse | Failed) -> None:
    """Leave a rank's word where rank 0 finds it."""
    failed = isinstance(message, Failed)
    reports.set(f"{'failed' if failed else 'pulse'}-{rank}", to_json(message))
    if failed:
        time.sleep(2 * HEARTBEAT_S)  # until rank 0 has passed it on


def _beat(reporter: Reporter) -> None:
    while True:
        try:
            reporter.send(reporter.pulse())
        except RuntimeError as error:
            log.warning("rank 0 and its store are gone: %s", str(error).split("\n")[0])
            return
        time.sleep(HEARTBEAT_S)


def _relay(reports: Signed, world_size: int, send: Callable[[Any], None]) -> None:
    """Pass on what the other ranks have left, when it is new."""
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
    """Rank 0's door: whoever attaches is served until they hang up."""

    def __init__(self, preset: Preset, address: Address, key: bytes) -> None:
        self._preset, self._key = preset, key
        try:
            self._listener = socket.create_server((address.host, address.port), family=address.family)
        except OSError as error:
            raise BadInput(
                f"Cannot listen at {address}: {error.strerror}.", "Choose another --listen address."
            ) from error
        self._served: queue.SimpleQueue[tuple[Service, Bundles]] = queue.SimpleQueue()
        self._bundles: Bundles = queue.SimpleQueue()  # of whoever is served
        self._now: Service | None = None
        self._entering = threading.Lock()
        log.info("rank 0 listens at %s", address)

    def open(self, reporter: Reporter) -> None:
        """Let them in from now on."""
        threading.Thread(target=self._accept, args=(reporter,), name="door", daemon=True).start()

    def send(self, message: Any) -> None:
        """To whoever is served now, if anybody."""
        service = self._now
        if service is not None:
            service.send(message)

    def settle(self) -> None:
        """Wait until they have been sent all."""
        service = self._now
        if service is not None:
            service.settle()

    def services(self) -> Iterator[Service]:
        """Everybody who is let in, one after another."""
        while True:
            service, self._bundles = self._served.get()
            yield service

    def unpacking(self, source: FrameSource) -> FrameSource:
        """The source, for requests whose files come in bundles."""
        return Unpacking(source, lambda: self._bundles.get(), self.send)

    def _accept(self, reporter: Reporter) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError as error:  # a caller that hung up at once, or more of them than a process can hold
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
            bundles: Bundles = queue.SimpleQueue()  # one without its run must not reach the next visitor
            service = Service(link, on_hangup=self._vacate, on_other=partial(self._other, bundles))
            self._now = service
        service.start(reporter.pulse)  # from here on it may have hung up, and vacated its place
        self._served.put((service, bundles))

    def _vacate(self) -> None:
        self._now = None

    def _other(self, bundles: Bundles, message: Any) -> None:
        if isinstance(message, Shipped):
            bundles.put(message.bundle)
        elif isinstance(message, Quit):
            log.error("whoever is attached found a rank lost: all end")
            os._exit(1)


class Unpacking:
    """A FrameSource whose requests' files come in bundles, a bundle a run."""

    def __init__(
        self, source: FrameSource, next_bundle: Callable[[], RequestBundle], send: Callable[[Any], None]
    ) -> None:
        self._source, self._next_bundle, self._send = source, next_bundle, send
        self.label = source.label

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource."""
        with Scratch() as folder:  # what a rank that was killed had been sent goes with the next run
            here = self._next_bundle().unpacked(request, folder)
            yield from self._source.frames(here, cancelled)
            if here.part is not None and here.part.leave is not None and here.part.leave.exists():
                self._send(Left(here.part.leave.read_bytes()))

    def __getattr__(self, name: str) -> Any:
        """What the source can do besides, like telling its plan."""
        return getattr(self._source, name)

    def close(self) -> None:
        """See FrameSource."""
        self._source.close()
