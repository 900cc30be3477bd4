"""A rank's process: `python -m avatar.distributed.rank_process FD`; torchrun starts `avatar worker` instead.

Rank 0 generates the frames requested over its link, and the others help. Every rank reports errors at once.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from avatar.errors import AvatarError, BadInput, Cancelled, WeightsMissing
from avatar.hardware.cuda_context import open_ahead
from avatar.hardware.inventory import probe
from avatar.planning.layout import Layout
from avatar.planning.plan import Plan
from avatar.planning.planner import plan
from avatar.planning.weight_format import settled_here
from avatar.request import Request
from avatar.runtime.child_process import ignore_ending_signals
from avatar.runtime.engine import FrameSource
from avatar.runtime.live_protocol import LiveFrames
from avatar.runtime.live_sound_queue import SoundInbox
from avatar.runtime.protocol import (
    Failed,
    Link,
    MadeFrames,
    OutOfMemory,
    Planned,
    PlanRequest,
    Prepare,
    Pulse,
    RendezvousPort,
    Run,
    RunEvent,
    RunLive,
    StartRank,
)
from avatar.runtime.worker_loop import Service, leave

if TYPE_CHECKING:
    from avatar.distributed.rendezvous import RankContext

log = logging.getLogger(__name__)

HARMLESS = (Cancelled, BadInput, WeightsMissing)  # after these, all ranks wait for the next run
_PR_SET_PDEATHSIG = 1  # option of Linux's prctl


class Reporter:
    """Sends a rank's heartbeats and its failure to the supervisor.

    send: may return before the message has been sent; settle: waits until all have been sent.
    """

    def __init__(
        self, rank: int, send: Callable[[Any], None], settle: Callable[[], None] = lambda: None
    ) -> None:
        self.rank, self.send, self._settle = rank, send, settle
        self.context: RankContext | None = None

    def pulse(self) -> Pulse:
        """A heartbeat with this rank's state."""
        if self.context is None:
            return Pulse(self.rank)
        from avatar.model.device_checks import missing
        from avatar.pipeline.offload.pinned import pinned_bytes

        context, meter = self.context, self.context.meter
        return Pulse(
            self.rank,
            context.role,
            context.place,
            meter.ticks,
            meter.busy_s,
            meter.sent_bytes,
            meter.peak_bytes,
            pinned_bytes(),
            meter.step_s,
            missing=tuple(code for code, _ in missing()),
        )

    def fail(self, error: BaseException) -> None:
        """Report an error that this rank cannot recover from, and exit. Does not return."""
        failure, foreseen = self._as_reported(error)
        log.error("rank %d failed", self.rank, exc_info=None if foreseen else error)
        try:
            self.send(Failed(self.rank, failure, foreseen))
            self._settle()
        finally:
            logging.shutdown()
            os._exit(1)  # skips destructors of CUDA and NCCL, which could wait for other ranks

    def _as_reported(self, error: BaseException) -> tuple[AvatarError, bool]:
        """The error to show to the user, and whether it is the actual cause."""
        if isinstance(error, AvatarError):
            return error, True
        if isinstance(error, RuntimeError):
            from avatar.pipeline.device import is_out_of_memory

            if is_out_of_memory(error):
                return OutOfMemory.on(self.rank, self.context.place if self.context else ""), True
        return AvatarError(f"Rank {self.rank} failed.", "The log of the server says why."), False


def work(
    start: StartRank,
    reporter: Reporter,
    make_context: Callable[[], RankContext],
    services: Iterable[Service],
    around: Callable[[FrameSource], FrameSource] = lambda source: source,
) -> None:
    """Join the other ranks and work until there is no more to do; report any error.

    services: the clients that rank 0 serves, one after another. around: wraps rank 0's source.
    """
    try:
        reporter.context = context = make_context()
        context.fail = reporter.fail
        reporter.send(reporter.pulse())
        log.info("rank %d has its device", start.rank)
        roles = importlib.import_module(start.roles)
        preset = settled_here(start.preset)
        if start.rank:
            roles.assist(preset, start.weights, context)
            return
        source = around(roles.lead(preset, start.weights, context))
        log.info("the pipeline is there")
        for service in services:
            lead(service, source, alone=start.world_size == 1)
    except BaseException as error:
        reporter.fail(error)


def lead(service: Service, source: FrameSource, alone: bool) -> None:
    """Rank 0: generate the frames of every run. alone: no other rank could be out of step after an error."""
    for run in service.asked():
        if isinstance(run, PlanRequest):
            binds = getattr(source, "plan_binds", True)
            service.send(Planned(plan_of(source, run.request), binds))
            continue
        if isinstance(run, Prepare):  # ranks have nothing to get ready
            continue
        error: AvatarError | None = None
        try:
            for message in answers(source, run, partial(service.stopped, run), service.sound):
                service.send(message)
        except HARMLESS as harmless:
            error = harmless
        except AvatarError as fault:
            if not alone:
                raise
            error = fault
        service.end(run, error)


def answers(
    source: FrameSource, run: Run, cancelled: Callable[[], bool], sound: SoundInbox | None = None
) -> Iterator[MadeFrames | RunEvent | LiveFrames]:
    """Rank 0's messages during a run; the first frames carry the anchor if the source has one."""
    if isinstance(run, RunLive):
        assert sound is not None
        for one in source.live(run.request, sound.of(run.run, cancelled), cancelled):  # type: ignore[attr-defined]
            yield one if isinstance(one, LiveFrames) else RunEvent(run.run, one)
        return
    anchor_of = getattr(source, "anchor", None)
    for item in source.frames(run.request, cancelled):
        if isinstance(item, np.ndarray):
            yield MadeFrames(run.run, item, None if anchor_of is None else anchor_of())
            anchor_of = None
        else:
            yield RunEvent(run.run, item)


def plan_of(source: FrameSource, request: Request) -> Plan | AvatarError:
    """The source's plan for a request, or the planner's if the source has none; or the planning error."""
    plan_for = getattr(source, "plan_for", None)
    try:
        planned: Plan = plan(request.preset, probe()) if plan_for is None else plan_for(request)
        return planned
    except AvatarError as error:
        return error


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends. Source: man 2 prctl.

    On other systems than Linux, the closed link ends the process: see Service.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent has already ended
        leave()


def serve(link: Link) -> None:
    """Run a rank on this machine, from its start message on."""
    start = link.recv()
    die_with(start.parent)
    logging.getLogger().setLevel(start.log_level)
    log.info("rank %d has started", start.rank)
    if start.preset.num_gpus:
        open_ahead(start.rank)
    meetings: queue.SimpleQueue[RendezvousPort] = queue.SimpleQueue()
    service = Service(link, on_other=meetings.put)
    reporter = Reporter(start.rank, service.send, service.settle)
    service.start(reporter.pulse)
    work(start, reporter, partial(context_here, start, service, meetings), [service])


def context_here(
    start: StartRank, service: Service, meetings: queue.SimpleQueue[RendezvousPort]
) -> RankContext:
    """Join the other ranks on this machine. Raises: DoesNotFit."""
    from avatar.distributed.rendezvous import RankContext, device_of, open_store, reach_store

    device = device_of(start.rank, start.world_size, start.preset.requires.num_gpus == 0)
    store = None
    if start.world_size > 1 and start.rank == 0:
        store = open_store("127.0.0.1", start.world_size)
        service.send(RendezvousPort(store.port))
    elif start.world_size > 1:
        store = reach_store("127.0.0.1", meetings.get().port, start.world_size)
    return RankContext.take(start.rank, Layout.of(start.preset), device, store)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ignore_ending_signals()  # the parent handles Ctrl-C: it cancels the run and closes the file
    importlib.import_module("avatar.distributed.rank_process").serve(Link(int(sys.argv[1])))
