"""A FrameSource whose frames are made by ranks: they are started when needed and stay for the next run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from avatar.errors import AvatarError, Cancelled
from avatar.events import Notice, Phase, Progress
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import Request
from avatar.runtime.attach import Address, AttachedFleet
from avatar.runtime.course import Course
from avatar.runtime.engine import SELF_TEST_LABEL, Frames
from avatar.runtime.factory import serves
from avatar.runtime.local_ranks import Fleet, Limits, LocalFleet
from avatar.runtime.rank_messages import Made, OutOfMemory, Planned, Pulse, Told
from avatar.runtime.worker_loop import Ask, Cancel, Ended, Run

log = logging.getLogger(__name__)

ROLES = "avatar.distributed.roles"
IDLE_S = 0.5  # between two looks at ranks that have nothing to do
CANCEL_LIMIT_S = 15.0  # a cancelled run must have ended by then, or the ranks are


class RankedSource:
    """See FrameSource. One rank or many: the same way."""

    def __init__(
        self,
        preset: Preset,
        weights: Path | None = None,
        *,
        attach: str | None = None,
        roles: str = ROLES,
        limits: Limits | None = None,
    ) -> None:
        """Starts the ranks, and does not wait for them. weights: the checkpoint folder, when named.

        attach: where rank 0 of ranks listens that were started by torchrun; they are not started here, and
        have their own weights. roles: see Start.
        """
        self._address = None if attach is None else Address.parse(attach)
        self.label = SELF_TEST_LABEL if preset.requires.weights == "tiny" else ""
        self._weights, self._roles, self._limits = weights, roles, limits or Limits()
        self._starter = ThreadPoolExecutor(
            1, "ranks"
        )  # lives on: ranks end with the thread that started them
        self._run = 0
        self._stands_on: dict[str, int] = {}  # a long video's run, and the rungs that it has taken
        self._served = serves(preset)
        self._fleet: Fleet | None = None if attach else self._start(preset)
        self._busy = threading.Lock()  # held by whoever listens to the ranks
        self._closed = threading.Event()
        self._idler = threading.Thread(target=self._listen_idle, name="idle ranks", daemon=True)
        self._idler.start()

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """See FrameSource. A full GPU ends the ranks, and fresh ones go on a rung lower.

        Raises: also WorkerLost; the next run finds fresh ranks then.
        """
        with self._busy:
            yield from self._frames(request, cancelled)

    def _frames(
        self, request: Request, cancelled: Callable[[], bool]
    ) -> Iterator[Frames | Notice | Progress]:
        part = request.part
        course = Course(request, self._stands_on.get(part.run, 0) if part else 0)
        try:
            while not course.is_whole:
                try:
                    yield from self._made(course, cancelled)
                    break
                except OutOfMemory as error:
                    log.warning("%s", error.message)
                    full = error.device
                if course.is_whole:
                    course.leave()
                else:
                    yield course.step_down(full)
        finally:
            self._stands_on = {part.run: course.num_rungs} if part else {}
            course.close()

    def _made(self, course: Course, cancelled: Callable[[], bool]) -> Iterator[Frames | Notice | Progress]:
        """What is left to make, by one group of ranks. Raises: AvatarError."""
        yield Progress(Phase.LOADING)
        if cancelled():
            raise Cancelled("The run was stopped.")
        request = course.rest
        fleet = self._fleet_for(request.preset)
        self._run += 1
        ended = False
        try:
            fleet.send(Run(self._run, request))
            asked_to_stop: float | None = None
            while not ended:
                message = fleet.receive()
                if isinstance(message, Ended) and message.run == self._run:
                    ended = True
                    if message.error is not None:
                        raise message.error
                elif asked_to_stop is not None:
                    if time.monotonic() - asked_to_stop > CANCEL_LIMIT_S:
                        self._give_up(fleet)
                elif cancelled():
                    _leave_home(fleet)
                    asked_to_stop = time.monotonic()
                    fleet.send(Cancel(self._run))
                else:
                    yield from self._passed(course, message)
                    if isinstance(message, Pulse) and message.rank == 0:
                        yield Progress(Phase.LOADING, ranks=fleet.loads)  # phases never go back
        except AvatarError:
            for message in fleet.unread():
                yield from self._passed(course, message)
            raise
        finally:
            if not ended and fleet.alive:
                self._drain(fleet)

    def _passed(self, course: Course, message: Any) -> Iterator[Frames | Notice | Progress]:
        """What a message of the run's ranks has for its consumer."""
        if isinstance(message, Made) and message.run == self._run:
            yield course.pass_frames(message)
        elif isinstance(message, Told) and message.run == self._run:
            if isinstance(message.event, Notice):
                course.pass_notice(message.event)
            yield message.event

    def plan_for(self, request: Request, cancelled: Callable[[], bool] = lambda: False) -> Plan:
        """The plan that a run of this request would follow: rank 0 knows its device.

        Raises: AvatarError, Cancelled.
        """
        with self._busy:
            fleet = self._fleet_for(request.preset)
            fleet.send(Ask(request))
            while not isinstance(message := fleet.receive(), Planned):
                if cancelled():
                    _leave_home(fleet)
        if isinstance(message.plan, AvatarError):
            raise message.plan
        return message.plan

    def pinned_bytes(self) -> int:
        """Page-locked memory that the ranks held when last heard of."""
        pulses = [] if self._fleet is None else self._fleet.last_pulses
        return sum(pulse.pinned_bytes for pulse in pulses if pulse is not None)

    def close(self) -> None:
        """See FrameSource."""
        self._closed.set()
        self._idler.join()
        if self._fleet is not None:
            self._fleet.leave()
        self._starter.shutdown()

    def _listen_idle(self) -> None:
        """Between runs: what the ranks say is read, and one that is lost is seen before the next run."""
        while not self._closed.wait(IDLE_S):
            if not self._busy.acquire(blocking=False):
                continue
            try:
                if self._fleet is not None and self._fleet.alive:
                    self._fleet.listen_idle()
            except AvatarError as error:
                log.warning("while idle: %s", error)
            finally:
                self._busy.release()

    @property
    def fleet(self) -> Fleet:
        """The ranks of the last run, or those of the next."""
        assert self._fleet is not None
        return self._fleet

    def _fleet_for(self, preset: Preset) -> Fleet:
        """The ranks that are there, if they serve this preset; else fresh ones. Raises: BadInput."""
        if self._fleet is None or not self._fleet.alive or serves(preset) != self._served:
            if self._fleet is not None:
                self._fleet.leave()
            self._fleet = self._start(preset)
            self._served = serves(preset)
        return self._fleet

    def _start(self, preset: Preset) -> Fleet:
        if self._address is not None:
            return AttachedFleet(preset, self._address, self._limits)
        return self._starter.submit(LocalFleet, preset, self._weights, self._roles, self._limits).result()

    def _drain(self, fleet: Fleet) -> None:
        """The consumer has left: cancel, and listen until the run has ended."""
        deadline = time.monotonic() + CANCEL_LIMIT_S
        try:
            _leave_home(fleet)
            fleet.send(Cancel(self._run))
            while time.monotonic() < deadline:
                message = fleet.receive()
                if isinstance(message, Ended) and message.run == self._run:
                    return
            self._give_up(fleet)
        except AvatarError as error:
            log.warning("while stopping: %s", error)

    def _give_up(self, fleet: Fleet) -> None:
        """The ranks do not stop: end them. Raises: Cancelled."""
        log.error("the ranks did not stop within %g s, and are ended", CANCEL_LIMIT_S)
        fleet.end()
        raise Cancelled("The run was stopped.")


def _leave_home(fleet: Fleet) -> None:
    """A run is to end: ranks that are still starting hear nothing for seconds, and are ended themselves.

    Raises: Cancelled then.
    """
    if not fleet.at_home:
        fleet.end()
        raise Cancelled("The run was stopped.")
