"""Rank 0's coordinator: hands out the items (block, step) and collects blocks; a Denoiser to the rollout.

It works in a separate thread, so that frames can be decoded at the same time. The thread is kept from run to
run, since PyTorch caches cuDNN's attention plans, some 80 ms per shape, per thread (source:
aten/src/ATen/native/cudnn/MHA.cpp). Latents pass through rank 0 on the CPU between two stages' steps; only
the tokens within a step go directly from stage to stage.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import replace

import torch
from torch import Tensor

from avatar.distributed.p2p import Done, Encode, End, Message
from avatar.distributed.process_groups import Group
from avatar.distributed.stage import Stage
from avatar.distributed.wavefront_schedule import Order, WavefrontRun
from avatar.errors import Cancelled
from avatar.geometry import Geometry
from avatar.model.transformer import StreamingTransformer
from avatar.pipeline.denoiser import Conditions
from avatar.pipeline.device import downloaded
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.generation import Block
from avatar.pipeline.layer_stack import CompiledPieces

POLL_S = 0.02  # between two checks for cancellation
BLOCKS_AHEAD = 2  # submitted beyond those in progress, so that ranks do not run dry during decoding


def assist(
    group: Group,
    transformer: StreamingTransformer,
    dtype: torch.dtype,
    pieces: CompiledPieces,
    encode: Callable[[Tensor], object] | None = None,
) -> None:
    """The main loop of every rank except 0: do its share of each item, until the process ends.

    encode: does its share of encoding a prompt; None if rank 0 encodes alone.
    """
    stage = Stage(group, transformer, dtype, pieces, lambda done: group.post.send(done, 0))
    while True:
        message = group.post.receive(0)
        if isinstance(message, Encode):
            assert encode is not None
            encode(message.ids)
            continue
        stage.handle(message)
        if isinstance(message, End):
            group.post.settle()


Runs = queue.SimpleQueue[tuple[Context, WavefrontRun]]


def conduct_all(runs: Runs) -> None:
    """The conducting thread's main loop: one run after another."""
    while True:
        context, run = runs.get()
        context.run(run.conduct)
        del context, run  # free them now, as the next run may be far off


class Coordinator:
    """Rank 0's side of a group, for the lifetime of the group."""

    def __init__(
        self,
        group: Group,
        transformer: StreamingTransformer | None,
        dtype: torch.dtype,
        pieces: CompiledPieces,
    ) -> None:
        """transformer: rank 0's share, or None when it only decodes."""
        self.group, self.layout = group, group.layout
        self.stage: Stage | None = None
        self.answers: queue.Queue[Done] = queue.Queue()
        if transformer is not None:
            self.stage = Stage(group, transformer, dtype, pieces, self.answers.put)
        self._stream: torch.cuda.Stream | None = None
        self._runs: Runs = queue.SimpleQueue()
        threading.Thread(target=conduct_all, args=(self._runs,), name="conductor", daemon=True).start()

    def follow(self, run: WavefrontRun) -> None:
        """Queue a run, whose orders the conducting thread follows once earlier runs are over."""
        # In a copy of this thread's context, which holds the compiler's limits: these are per thread.
        self._runs.put((copy_context(), run))

    def denoiser(
        self, geometry: Geometry, schedule: Schedule, ring_dtype: torch.dtype | None = None
    ) -> ParallelDenoiser:
        """A denoiser over the group; one at a time. Raises: BadInput for fewer steps than the stages need."""
        self.layout.require_steps(schedule.num_steps)
        return ParallelDenoiser(self, geometry, schedule, ring_dtype)

    def settle(self) -> None:
        """Wait until every rank has received every message sent to it."""
        self.group.post.settle()

    def send(self, ranks: range, message: Message) -> None:
        """Send a message to ranks; this rank, if included, handles it itself, after sending to the others."""
        for rank in ranks:
            if rank != 0:
                self.group.post.send(message, rank)
        if 0 in ranks:
            assert self.stage is not None
            self.stage.handle(message)

    def receive(self, rank: int) -> Done:
        """Wait for a rank's next answer."""
        done = self.answers.get() if rank == 0 else self.group.post.receive(rank)
        self.group.meter.tick()
        return done

    @contextmanager
    def on_own_stream(self) -> Iterator[None]:
        """A high-priority stream for the conducting thread: items precede decoding on the shared GPU."""
        device = self.group.device
        if device.type != "cuda":
            yield
            return
        torch.cuda.set_device(device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device, priority=-1)
        self._stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(self._stream):
            yield


class ParallelDenoiser:
    """A Denoiser over several ranks.

    Items are handed out diagonal by diagonal, in an order that depends only on the layout, a few ahead of
    those that are done.
    """

    def __init__(
        self, conductor: Coordinator, geometry: Geometry, schedule: Schedule, ring_dtype: torch.dtype | None
    ) -> None:
        self.geometry, self.schedule = geometry, schedule
        self._conductor, self._layout, self._ring_dtype = conductor, conductor.layout, ring_dtype
        self.num_in_flight = (
            1 + self._layout.lag_of(schedule.num_steps - 1, schedule.num_steps) + BLOCKS_AHEAD
        )
        self._run: WavefrontRun | None = None

    def begin(self, conditions: Conditions) -> None:
        """See Denoiser. Ends the previous generation, if it is still open."""
        self.close()
        run = WavefrontRun(self._conductor, self.schedule, self.geometry, self._ring_dtype)
        run.orders.put(on_cpu(conditions))
        self._conductor.follow(run)
        self._run = run

    def refresh(self, reference: Tensor) -> None:
        """See Denoiser."""
        self._order(reference.cpu())

    def submit(self, block: Block) -> None:
        """See Denoiser."""
        pose = None if block.pose is None else downloaded(block.pose)
        self._order(replace(block, audio=downloaded(block.audio), pose=pose))

    def collect(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """See Denoiser. Latents are on the CPU; check is called often.

        Raises: any error of the group; Cancelled if another thread closes this denoiser meanwhile.
        """
        run = self._run
        try:
            while True:
                check()
                if run is None or run.quit.is_set():
                    raise Cancelled("Stopped.")
                try:
                    finished = run.finished.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                if isinstance(finished, BaseException):
                    raise finished
                return finished
        except BaseException:
            self.close()
            raise

    def is_finished(self, wait_s: float) -> bool:
        """See Denoiser. Also when the run is over, of which collect() gives the reason."""
        run = self._run
        if run is None or run.quit.is_set() or not run.finished.empty():
            return True
        time.sleep(wait_s)
        return not run.finished.empty()

    def wait_until_begun(self) -> None:
        """See Denoiser. The first block's work is then on the GPU ahead of the decoder's."""
        assert self._run is not None
        self._run.begun.wait()

    def close(self) -> None:
        """Hand out no more items, wait for those in progress, and free the caches of every rank.

        An error that has not been collected leaves the ranks out of step, so this rank fails.
        """
        run, self._run = self._run, None
        if run is None:
            return
        run.quit.set()
        run.orders.put(None)
        run.over.wait()
        while not run.finished.empty():
            if isinstance(left := run.finished.get(), BaseException):
                self._conductor.group.fail(left)

    def _order(self, order: Order) -> None:
        assert self._run is not None
        self._run.orders.put(order)


def on_cpu(conditions: Conditions) -> Conditions:
    """The conditions on the CPU, to be sent to ranks; the audio follows block by block."""
    return replace(
        conditions,
        text=conditions.text.cpu(),
        reference=conditions.reference.cpu(),
        motion=conditions.motion.cpu(),
        masks=None if conditions.masks is None else conditions.masks.cpu(),
    )
