"""A FrameSource whose frames are made by ranks, which are started on demand and kept for the next run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from avatar.errors import AvatarError, Cancelled, WorkerLost
from avatar.events import Notice, Phase, PlanMade, Progress
from avatar.hardware.fast_paths import FAST_PATHS
from avatar.media.growing import end_frame
from avatar.planning.plan import Plan
from avatar.preset import Preset
from avatar.request import LiveRequest, Request
from avatar.runtime.engine import SELF_TEST_LABEL, FrameItem
from avatar.runtime.live_protocol import LiveFrames
from avatar.runtime.local_ranks import Limits, LocalRanks, SupervisedRanks
from avatar.runtime.out_of_memory import FallbackDescent
from avatar.runtime.protocol import (
    LiveSound,
    MadeFrames,
    OutOfMemory,
    Planned,
    PlanRequest,
    Pulse,
    Run,
    RunEvent,
    RunLive,
)
from avatar.runtime.resume_state import ResumeState
from avatar.runtime.supervisor import IdleListener
from avatar.runtime.torchrun_client import Address, AttachedRanks

log = logging.getLogger(__name__)

ROLES = "avatar.distributed.roles"
FILE = "shown.safetensors"  # in the run's work folder: the resume state for fresh ranks
E = TypeVar("E", bound=Notice | Progress | PlanMade)
SLOW = "slow_"  # codes of notices of missing fast paths begin so
CANCEL_LIMIT_S = 15.0  # time for a cancelled run to end before its ranks are killed


class SlowPaths:
    """The notices of fast paths that devices lack: one for each path in a run, whichever ranks lack it."""

    def __init__(self) -> None:
        self._announced: set[str] = set()

    def of_event(self, event: E) -> Iterator[E]:
        """An event of rank 0, which announces its own; nothing if another rank's came first."""
        if not (isinstance(event, Notice) and event.code.startswith(SLOW)):
            yield event
        elif event.code not in self._announced:
            self._announced.add(event.code)
            yield event

    def of_pulse(self, pulse: Pulse) -> Iterator[Notice]:
        """What another rank lacks and nobody has announced."""
        for code in pulse.missing if pulse.rank else ():
            if code in FAST_PATHS:  # the rank may be of another version
                yield from self.of_event(Notice(f"{SLOW}{code}", FAST_PATHS[code], "warning"))


class RankedSource:
    """See FrameSource. One rank and many are handled alike."""

    def __init__(
        self,
        preset: Preset,
        weights: Path | None = None,
        *,
        attach: str | None = None,
        roles: str = ROLES,
        limits: Limits | None = None,
    ) -> None:
        """Start the ranks, without waiting for them. weights: the checkpoint folder, if named.

        attach: the address of rank 0 of ranks started by torchrun; then none are started here, and they have
        their own weights. roles: see StartRank.
        """
        self._address = None if attach is None else Address.parse(attach)
        self.label = SELF_TEST_LABEL if preset.requires.weights == "tiny" else ""
        self._weights, self._roles, self._limits = weights, roles, limits or Limits()
        self._starter = ThreadPoolExecutor(
            1, "ranks"
        )  # kept alive: ranks end with the thread that started them
        self._run = 0
        self._stands_on: tuple[str, int, int] | None = None  # a long video's run, rungs, number of OOMs
        self._asked: tuple[Request, Planned] | None = None  # the last requested plan
        self._served = self._needs(preset)
        self._slow = SlowPaths()
        self._ranks: SupervisedRanks | None = None if attach else self._start(preset)
        self._idle = IdleListener(lambda: self._ranks)

    def frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        """See FrameSource. When ranks are lost, fresh ones resume, one rung lower if a GPU ran out of memory.

        Also raises WorkerLost, when the fresh ones are lost before they have made any frame.
        """
        with self._idle.busy:
            yield from self._frames(request, cancelled)

    def live(
        self, request: LiveRequest, sound: Iterator[np.ndarray], cancelled: Callable[[], bool]
    ) -> Iterator[LiveFrames | Notice | Progress]:
        """See LiveSource. Losing ranks ends the session; the caller may begin another."""
        with self._idle.busy:
            yield Progress(Phase.LOADING)
            ranks, slow = self._ranks_for(request.preset), SlowPaths()
            self._run += 1
            run = RunLive(self._run, request)
            threading.Thread(target=_speak, args=(ranks, run.run, sound), name="sound", daemon=True).start()
            for message in ranks.follow(run, cancelled, CANCEL_LIMIT_S):
                if isinstance(message, LiveFrames):
                    yield message
                elif isinstance(message, Pulse):
                    yield from slow.of_pulse(message)
                elif isinstance(message, RunEvent) and not isinstance(message.event, PlanMade):
                    yield from slow.of_event(message.event)

    def _frames(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[FrameItem]:
        state, file = self._state_of(request), request.work / FILE
        self._slow = SlowPaths()
        descent = FallbackDescent(request)
        descent.skip(state.num_rungs)
        lost_at: int | None = None  # the next frame at the last loss of ranks
        try:
            while not state.is_whole:
                state.end_at(end_frame(request))
                yield Progress(Phase.LOADING)
                self._ranks_for(request.preset)
                try:
                    yield from self._stepped_down(request, state, descent, cancelled)
                    yield from self._made(state, state.rest(request, file), cancelled)
                    return
                except OutOfMemory as full:
                    log.warning("%s", full.message)
                    notice = self._lower(state, descent, full)
                except WorkerLost as lost:
                    if lost_at == state.next_frame:
                        raise
                    lost_at, notice = state.next_frame, _restarted(lost, state)
                if notice is not None:
                    yield notice
            state.leave(request)  # on behalf of the lost ranks
        finally:
            part = request.part
            self._stands_on = (part.run, state.num_rungs, state.num_full) if part else None
            file.unlink(missing_ok=True)

    def _lower(self, state: ResumeState, descent: FallbackDescent, full: OutOfMemory) -> Notice | None:
        """Take a rung, unless all frames have been shown. Raises: DoesNotFit when no rung is left."""
        if state.is_whole:
            return None
        notice = descent.step_down(state.next_block, full.device)
        state.num_rungs, state.num_full = descent.num_taken, state.num_full + 1
        return notice

    def _state_of(self, request: Request) -> ResumeState:
        """A request's initial state; a part of a long video starts on the rung where the last one ended."""
        state, part = ResumeState.of(request), request.part
        if part is not None and self._stands_on is not None and self._stands_on[0] == part.run:
            _, num_rungs, num_full = self._stands_on
            state.num_rungs, state.num_full = max(state.num_rungs, num_rungs), max(state.num_full, num_full)
        return state

    def _stepped_down(
        self, request: Request, state: ResumeState, descent: FallbackDescent, cancelled: Callable[[], bool]
    ) -> Iterator[Notice | PlanMade]:
        """Take rungs before loading, since a GPU may have less free memory than when the run was accepted.

        Raises: DoesNotFit when no rung is left.
        """
        while True:
            planned = self._planned(state.rest(request, request.work / FILE), cancelled)
            if isinstance(planned.plan, AvatarError):
                raise planned.plan
            present = [gpu for gpu in planned.plan.gpus if gpu.total_bytes]
            if not planned.binds or not any(gpu.shortfall_bytes for gpu in present):
                if descent.num_taken:
                    yield PlanMade(planned.plan)
                return
            notice = descent.step_down_planned(planned.plan)
            state.num_rungs = descent.num_taken
            yield notice

    def _made(
        self, state: ResumeState, request: Request, cancelled: Callable[[], bool]
    ) -> Iterator[FrameItem]:
        """Run a request on one group of ranks, updating the state. Raises: AvatarError."""
        if cancelled():
            raise Cancelled("The run was stopped.")
        ranks = self._ranks_for(request.preset)
        self._run += 1
        try:
            for message in ranks.follow(Run(self._run, request), cancelled, CANCEL_LIMIT_S):
                yield from self._passed(state, message)
                if isinstance(message, Pulse) and message.rank == 0:
                    yield Progress(Phase.LOADING, ranks=ranks.loads)  # phases never go back
        except AvatarError:
            for message in ranks.unread():
                yield from self._passed(state, message)
            raise

    def _passed(self, state: ResumeState, message: Any) -> Iterator[FrameItem]:
        """Yield what a message of the run's ranks contains for the consumer."""
        if isinstance(message, MadeFrames) and message.run == self._run:
            if state.anchor is None:
                state.anchor = message.anchor
            yield state.show(message.frames)
        elif isinstance(message, RunEvent) and message.run == self._run:
            yield from self._slow.of_event(message.event)
        elif isinstance(message, Pulse):
            yield from self._slow.of_pulse(message)

    def plan_for(self, request: Request, cancelled: Callable[[], bool] = lambda: False) -> Plan:
        """The plan that a run of this request would follow, by rank 0, which knows its device.

        Raises: AvatarError, Cancelled.
        """
        with self._idle.busy:
            planned = self._planned(self._state_of(request).rest(request, request.work / FILE), cancelled)
        if isinstance(planned.plan, AvatarError):
            raise planned.plan
        return planned.plan

    def _planned(self, request: Request, cancelled: Callable[[], bool]) -> Planned:
        """Rank 0's plan for a request; the last answer is used once more. Raises: AvatarError, Cancelled."""
        asked, self._asked = self._asked, None
        if asked is not None and asked[0] == request and self._ranks is not None and self._ranks.alive:
            return asked[1]
        ranks = self._ranks_for(request.preset)
        ranks.send(PlanRequest(request))
        while not isinstance(message := ranks.receive(), Planned):
            if cancelled():
                ranks.leave_starting()
        self._asked = request, message
        return message

    def pinned_bytes(self) -> int:
        """Page-locked memory of all ranks, by their last heartbeats."""
        pulses = [] if self._ranks is None else self._ranks.last_pulses
        return sum(pulse.pinned_bytes for pulse in pulses if pulse is not None)

    def close(self) -> None:
        """See FrameSource."""
        self._idle.close()
        if self._ranks is not None:
            self._ranks.leave()
        self._starter.shutdown()

    @property
    def ranks(self) -> SupervisedRanks:
        """The current ranks: those of the last run, kept for the next."""
        assert self._ranks is not None
        return self._ranks

    def _ranks_for(self, preset: Preset) -> SupervisedRanks:
        """The existing ranks, if they serve this preset; otherwise fresh ones. Raises: BadInput."""
        if self._ranks is None or not self._ranks.alive or self._needs(preset) != self._served:
            if self._ranks is not None:
                self._ranks.leave()
            self._ranks = self._start(preset)
            self._served = self._needs(preset)
        return self._ranks

    def _needs(self, preset: Preset) -> Hashable:
        """What ranks must have to serve a preset; those started elsewhere keep their models."""
        return preset.process if self._address is None else preset.models

    def _start(self, preset: Preset) -> SupervisedRanks:
        if self._address is not None:
            return AttachedRanks(preset, self._address, self._limits)
        return self._starter.submit(LocalRanks, preset, self._weights, self._roles, self._limits).result()


def _speak(ranks: SupervisedRanks, run: int, sound: Iterator[np.ndarray]) -> None:
    """Forward a session's sound until it ends; the follower reports the loss of ranks."""
    try:
        for samples in sound:
            ranks.send(LiveSound(run, samples))
    except AvatarError as error:
        log.info("no more sound: %s", error.message)


def _restarted(lost: WorkerLost, state: ResumeState) -> Notice | None:
    """The notice that ranks are restarted; None if all frames have been shown."""
    if state.is_whole:
        return None
    log.warning("%s Fresh ones go on at frame %d.", lost.message, state.next_frame)
    text = f"{lost.message} Fresh processes go on; nothing is lost."
    return Notice("restarted", text, "warning", values={"cause": lost.message, "block": state.next_block})
