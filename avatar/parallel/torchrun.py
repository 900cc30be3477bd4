"""Ranks that torchrun started, on one node or several: `torchrun … -m avatar worker`.

Rank 0 listens for whoever attaches, one at a time. The others tell their state through torchrun's own store,
from which rank 0 passes it on. When one fails torchrun ends the others; with --max-restarts it starts anew.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar.engine import Frames, FrameSource
from avatar.errors import BadInput
from avatar.events import Notice, Progress
from avatar.parallel.attach import Address, Greeting, Left, Quit, Shipped, prove
from avatar.parallel.layout import Layout
from avatar.parallel.reports import Failed, Start
from avatar.parallel.worker import Reporter, work
from avatar.parcel import Parcel
from avatar.preset import Preset
from avatar.request import Request
from avatar.scratch import Scratch
from avatar.service import HEARTBEAT_S, Service

if TYPE_CHECKING:
    from torch.distributed import Store

    from avatar.parallel.seat import Seat

log = logging.getLogger(__name__)

ACCEPT_AGAIN_S = 0.5  # after a caller who could not be let in

Parcels = queue.SimpleQueue[Parcel]


@dataclass(frozen=True)
class Place:
    """What torchrun says of this process, in its environment."""

    rank: int
    world_size: int
    local_rank: int
    num_local: int
    attempt: str

    @classmethod
    def taken(cls) -> Place:
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
    """Be the rank that torchrun says, until it ends this process. Raises: BadInput for a wrong world size."""
    place = Place.taken()
    layout = Layout.of(preset)
    if layout.world_size != place.world_size:
        raise BadInput(
            f"Preset {preset.name} takes {layout.world_size} ranks; torchrun started {place.world_size}.",
            f"Start {layout.world_size} on all nodes together, or change --num_gpus_dit.",
        )
    from torch.distributed import PrefixStore, rendezvous

    kept, _, _ = next(rendezvous("env://"))
    store = PrefixStore(f"attempt-{place.attempt}", kept)  # it may hold what lost ranks have left
    reports = PrefixStore(f"reports-{place.attempt}", kept.clone())
    start = Start(preset, weights, roles, place.rank, place.world_size, log.getEffectiveLevel())
    if place.rank:
        reporter = Reporter(place.rank, partial(_report, reports, place.rank))
        threading.Thread(target=_beat, args=(reporter,), name="heartbeat", daemon=True).start()
        work(start, reporter, partial(_seat, start, place, store), iter(()))
    else:
        desk = Desk(preset, address, key)
        reporter = Reporter(0, desk.send, desk.settle)
        desk.open(reporter)
        threading.Thread(
            target=_relay, args=(reports, place.world_size, desk.send), name="relay", daemon=True
        ).start()
        work(start, reporter, partial(_seat, start, place, store), desk.services(), desk.unpacking)


def _seat(start: Start, place: Place, store: Store) -> Seat:
    from avatar.parallel.seat import Seat, device_of

    device = device_of(place.local_rank, place.num_local, start.preset.requires.num_gpus == 0)
    return Seat.take(place.rank, Layout.of(start.preset), device, store)


def _report(reports: Store, rank: int, message: Any) -> None:
    """Leave a rank's word where rank 0 finds it."""
    failed = isinstance(message, Failed)
    reports.set(f"{'failed' if failed else 'pulse'}-{rank}", pickle.dumps(message).hex())
    if failed:
        time.sleep(2 * HEARTBEAT_S)  # until rank 0 has passed it on


def _beat(reporter: Reporter) -> None:
    while True:
        reporter.send(reporter.pulse())
        time.sleep(HEARTBEAT_S)


def _relay(reports: Store, world_size: int, send: Callable[[Any], None]) -> None:
    """Pass on what the other ranks have left, when it is new."""
    last: dict[str, bytes] = {}
    while True:
        for name in [f"{kind}-{rank}" for rank in range(1, world_size) for kind in ("failed", "pulse")]:
            if reports.check([name]) and (data := reports.get(name)) != last.get(name):
                last[name] = data
                send(pickle.loads(bytes.fromhex(data.decode())))
        time.sleep(HEARTBEAT_S)


class Desk:
    """Rank 0's door: whoever attaches is served until they hang up."""

    def __init__(self, preset: Preset, address: Address, key: bytes) -> None:
        self._preset, self._key = preset, key
        self._listener = Listener((address.host, address.port), backlog=8)
        self._served: queue.SimpleQueue[tuple[Service, Parcels]] = queue.SimpleQueue()
        self._parcels: Parcels = queue.SimpleQueue()  # of whoever is served
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
            service, self._parcels = self._served.get()
            yield service

    def unpacking(self, source: FrameSource) -> FrameSource:
        """The source, for requests whose files come in parcels."""
        return Unpacking(source, lambda: self._parcels.get(), self.send)

    def _accept(self, reporter: Reporter) -> None:
        while True:
            try:
                link = self._listener.accept()
            except OSError as error:  # a caller that hung up at once, or more of them than a process can hold
                log.warning("nobody could be let in: %s", error)
                time.sleep(ACCEPT_AGAIN_S)
                continue
            threading.Thread(target=self._let_in, args=(link, reporter), daemon=True).start()

    def _let_in(self, link: Connection, reporter: Reporter) -> None:
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
            parcels: Parcels = queue.SimpleQueue()  # one without its run must not reach the next visitor
            service = Service(link, on_hangup=self._vacate, on_other=partial(self._other, parcels))
            self._now = service
        service.start(reporter.pulse)  # from here on it may have hung up, and vacated its place
        self._served.put((service, parcels))

    def _vacate(self) -> None:
        self._now = None

    def _other(self, parcels: Parcels, message: Any) -> None:
        if isinstance(message, Shipped):
            parcels.put(message.parcel)
        elif isinstance(message, Quit):
            log.error("whoever is attached found a rank lost: all end")
            os._exit(1)


class Unpacking:
    """A FrameSource whose requests' files come in parcels, a parcel a run."""

    def __init__(
        self, source: FrameSource, next_parcel: Callable[[], Parcel], send: Callable[[Any], None]
    ) -> None:
        self._source, self._next_parcel, self._send = source, next_parcel, send
        self.label = source.label

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """See FrameSource."""
        with Scratch() as folder:  # what a rank that was killed had been sent goes with the next run
            here = self._next_parcel().unpacked(request, folder)
            yield from self._source.frames(here, cancelled)
            if here.part is not None and here.part.leave is not None and here.part.leave.exists():
                self._send(Left(here.part.leave.read_bytes()))

    def anchor(self) -> np.ndarray | None:
        """See FrameSource."""
        anchor_of = getattr(self._source, "anchor", None)
        return None if anchor_of is None else anchor_of()

    def close(self) -> None:
        """See FrameSource."""
        self._source.close()
