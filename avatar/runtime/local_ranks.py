"""Start and supervise ranks from the engine's process, and end all of them when one is lost.

No torch here: this process opens no GPU. Ranks run distributed.rank_process; rank 0 returns the frames.
"""

from __future__ import annotations

import logging
import queue
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from avatar.errors import AvatarError, Cancelled, WorkerLost
from avatar.events import RankLoad
from avatar.planning.layout import Layout
from avatar.preset import Preset
from avatar.runtime.child_process import Child, kill_all
from avatar.runtime.live_protocol import LiveFrames
from avatar.runtime.protocol import Failed, LiveSound, MadeFrames, Pulse, RendezvousPort, StartRank
from avatar.runtime.supervisor import HungUp, Supervised

log = logging.getLogger(__name__)

BLAME_S = 1.0  # a failing rank makes others fail: time to collect their reports, to find the first
LOAD_PULSES = 6  # heartbeats over which a rank's load is measured
TRY_AGAIN = "Try again: fresh ones are started."


@dataclass(frozen=True)
class Limits:
    """How long a rank may be silent, or all ranks make no progress, before they count as hung.

    silence_s: without a heartbeat. stall_s: without progress. start_s: without progress before the run's
    first frame, while models load and kernels are compiled. silence_s and stall_s grow with slow steps: to
    step_factor times a rank's longest recent step, or by first_factor before its first step, because PyTorch
    may hold Python's GIL while it waits for the GPU, which delays heartbeats.
    """

    silence_s: float = 30.0
    start_s: float = 600.0
    stall_s: float = 120.0
    step_factor: float = 10.0
    first_factor: float = 4.0


class SupervisedRanks(Supervised):
    """All ranks of one layout. links starts with rank 0's."""

    def __init__(self, preset: Preset, limits: Limits) -> None:
        super().__init__()
        self.layout, self.limits = Layout.of(preset), limits
        now = time.monotonic()
        self._heard = [now] * self.layout.world_size  # when each rank last sent anything
        self._moved = now  # when any of them last made progress
        self._pulses = [deque[Pulse](maxlen=LOAD_PULSES) for _ in self._heard]
        self._step_s: list[float | None] = [None] * self.layout.world_size  # each rank's longest recent step
        self._faults: dict[int, tuple[int, float, AvatarError]] = {}  # by rank: order, time, error
        self._making = False

    @abstractmethod
    def fate_of(self, link: Connection) -> tuple[int, str]:
        """The rank that closed its link, and how it ended."""

    def send(self, message: Any) -> None:
        """See Supervised."""
        if not isinstance(message, LiveSound):  # sound arrives constantly and requests nothing new
            self._making = False
            self._moved = time.monotonic()
        super().send(message)

    def listen_idle(self) -> None:
        """See Supervised."""
        self._moved = time.monotonic()  # no progress is expected now
        super().listen_idle()

    @property
    def loads(self) -> tuple[RankLoad, ...]:
        """Each rank's load over the last few seconds."""
        return tuple(self._load(rank) for rank in range(self.layout.world_size))

    @property
    def all_ready(self) -> bool:
        """Whether all ranks have finished importing PyTorch and process messages."""
        return all(pulse is not None and pulse.place for pulse in self.last_pulses)

    @property
    def last_pulses(self) -> list[Pulse | None]:
        """Each rank's last heartbeat; None before its first."""
        return [pulses[-1] if pulses else None for pulses in self._pulses]

    def name_of(self, rank: int) -> str:
        """ "Rank 1 (layers 14–26, GPU 1)" """
        load = self._load(rank)
        words = ", ".join(word for word in (load.role, load.place) if word)
        return f"Rank {rank} ({words})" if words else f"Rank {rank}"

    def _load(self, rank: int) -> RankLoad:
        pulses = self._pulses[rank]
        busy = None
        if len(pulses) > 1 and pulses[-1].at_s > pulses[0].at_s:
            busy = 100 * (pulses[-1].busy_s - pulses[0].busy_s) / (pulses[-1].at_s - pulses[0].at_s)
            busy = min(100.0, round(busy, 1))
        last = pulses[-1] if pulses else Pulse(rank)
        return RankLoad(rank, last.role, last.place, busy)

    def _take(self, message: Any) -> None:
        """See Supervised."""
        now = time.monotonic()
        if isinstance(message, Pulse):
            pulses = self._pulses[message.rank]
            if not pulses or pulses[-1].ticks != message.ticks:
                self._moved = now
            self._step_s[message.rank] = message.step_s
            pulses.append(message)
            self._heard[message.rank] = now
        else:
            self._heard[0] = self._moved = now
        if isinstance(message, MadeFrames | LiveFrames):
            self._making = True
        if isinstance(message, Failed):
            self._blame(message.rank, 0 if message.foreseen else 2, message.error, message.at_s)
        self._waiting.append(message)

    def leave_starting(self) -> None:
        """End ranks that are still starting and would not respond for seconds. Raises: Cancelled then."""
        if not self.all_ready:
            self.end()
            raise Cancelled("The run was stopped.")

    def _stopping(self) -> None:
        """See Supervised."""
        self.leave_starting()

    def _not_stopped(self, limit_s: float) -> AvatarError:
        """See Supervised."""
        log.error("the ranks did not stop within %g s, and are ended", limit_s)
        return Cancelled("The run was stopped.")

    def _check(self, now: float, away_s: float) -> None:
        """Raises: WorkerLost when a rank is silent, or none makes progress, for too long."""
        self._heard = [min(now, heard + away_s) for heard in self._heard]
        self._moved = min(now, self._moved + away_s)
        for rank, heard in enumerate(self._heard):
            pulses = self._pulses[rank]
            listens = bool(pulses and pulses[-1].place)  # importing PyTorch may delay heartbeats
            limit_s = self._grown(self.limits.silence_s, rank) if listens else self.limits.start_s
            if now - heard > limit_s:
                cause = f"{self.name_of(rank)} gave no sign of life for {limit_s:g} s."
                self._blame(rank, 0, WorkerLost(cause, TRY_AGAIN), blame_s=0)
        stall_s = max(self._grown(self.limits.stall_s, rank) for rank in range(len(self._heard)))
        limit_s = stall_s if self._making else self.limits.start_s
        if now - self._moved > limit_s:
            ticks = [pulses[-1].ticks if pulses else 0 for pulses in self._pulses]
            rank = min(range(len(ticks)), key=ticks.__getitem__)
            cause = (
                f"The ranks made no progress for {limit_s:g} s; {self.name_of(rank)} is the furthest behind."
            )
            self._blame(rank, 0, WorkerLost(cause, TRY_AGAIN), blame_s=0)

    def _grown(self, limit_s: float, rank: int) -> float:
        """The limit, extended for a rank with slow steps or without a finished step."""
        step_s = self._step_s[rank]
        if step_s is None:
            return self.limits.first_factor * limit_s
        return max(limit_s, self.limits.step_factor * step_s)

    def _hung_up(self, link: Connection) -> None:
        """See Supervised."""
        rank, fate = self.fate_of(link)
        self._blame(rank, 1, WorkerLost(f"{self.name_of(rank)} {fate}.", TRY_AGAIN))

    def _blame(
        self,
        rank: int,
        order: int,
        error: AvatarError,
        at_s: float | None = None,
        blame_s: float = BLAME_S,
    ) -> None:
        """Handle the loss of a rank: end all. order: 0 is the most informative kind of error.

        Raises: the error of the rank that failed first, as far as is known.
        """
        first = not self._faults
        self._faults.setdefault(rank, (order, time.time() if at_s is None else at_s, error))
        if not first:
            return  # a caller up the stack is gathering them
        if self.layout.world_size > 1:
            self._gather(time.monotonic() + blame_s)
        self.end()
        earliest = min(self._faults.values(), key=lambda fault: fault[:2])[2]
        log.error("all ranks ended: %s", earliest)
        raise earliest

    def _gather(self, until: float) -> None:
        """Collect the other ranks' errors: when one fails, those waiting for it fail, too."""
        num_open = len(self.links)
        while num_open and (left := until - time.monotonic()) > 0:
            try:
                link, message = self._inbox.get(timeout=left)
            except queue.Empty:
                return
            if isinstance(message, HungUp):
                num_open -= 1
                self._hung_up(link)
            else:
                self._take(message)


class LocalRanks(SupervisedRanks):
    """Ranks on this machine, each in a subprocess."""

    def __init__(self, preset: Preset, weights: Path | None, roles: str, limits: Limits) -> None:
        """Start the ranks without waiting. They end with the calling thread, so it must outlive them."""
        super().__init__(preset, limits)
        world_size = self.layout.world_size
        env = {"GLOO_SOCKET_IFNAME": "lo"} if world_size > 1 else {}
        self.children = [Child("avatar.distributed.rank_process", env=env) for _ in range(world_size)]
        level = logging.getLogger().getEffectiveLevel()
        for rank, child in enumerate(self.children):
            self._read(child.link)
            try:
                child.link.send(StartRank(preset, weights, roles, rank, world_size, level))
            except OSError:  # it has already ended, which its reading thread reports
                log.debug("rank %d does not hear its start", rank)

    @property
    def links(self) -> Sequence[Connection]:
        """See SupervisedRanks."""
        return [child.link for child in self.children]

    @property
    def alive(self) -> bool:
        """See SupervisedRanks."""
        return bool(self.children) and all(child.alive for child in self.children)

    def end(self) -> None:
        """See SupervisedRanks."""
        children, self.children = self.children, []
        kill_all(children, close_links=False)
        self._stop_reading()
        for child in children:
            child.link.close()

    def fate_of(self, link: Connection) -> tuple[int, str]:
        """See SupervisedRanks."""
        rank = self.links.index(link)
        return rank, self.children[rank].fate()

    def _take(self, message: Any) -> None:
        if not isinstance(message, RendezvousPort):
            return super()._take(message)
        for child in self.children[1:]:
            try:
                child.link.send(message)
            except OSError:
                self._hung_up(child.link)
