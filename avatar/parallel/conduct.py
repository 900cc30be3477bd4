"""Rank 0's side: hands out the items (block, step) and puts the blocks together; a Denoiser to the rollout.

It works in a thread of its own, so that frames are decoded meanwhile. Latents pass through here on the CPU
between two stages' steps; only the tokens inside a step go from stage to stage directly.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avatar.diffusion.denoise import Block, Conditions
from avatar.diffusion.layer_stack import Pieces
from avatar.diffusion.schedule import Schedule
from avatar.errors import AvatarError
from avatar.geometry import Geometry
from avatar.models.transformer import StreamingTransformer
from avatar.parallel.group import Group
from avatar.parallel.messages import Begin, Done, End, Message, Open, Prefill, Release, Stop, Work
from avatar.parallel.stages import Stage

log = logging.getLogger(__name__)

POLL_S = 0.02  # between two looks whether a run was cancelled
BLOCKS_AHEAD = 2  # submitted beyond those at work, so that none is missed while frames are decoded
NOTHING = torch.empty(0)


def assist(group: Group, transformer: StreamingTransformer, dtype: torch.dtype, pieces: Pieces) -> None:
    """What every rank but 0 does: its share of each item, until rank 0 says Stop."""
    stage = Stage(group, transformer, dtype, pieces, lambda done: group.post.send(done, 0))
    while not isinstance(message := group.post.receive(0), Stop):
        stage.handle(message)


class Conductor:
    """Rank 0 of a group, as long as the group lives."""

    def __init__(
        self,
        group: Group,
        transformer: StreamingTransformer | None,
        dtype: torch.dtype,
        pieces: Pieces,
    ) -> None:
        """transformer: rank 0's share, None when it only decodes."""
        self.group, self.layout = group, group.layout
        self.stage: Stage | None = None
        self.answers: queue.Queue[Done] = queue.Queue()
        if transformer is not None:
            self.stage = Stage(group, transformer, dtype, pieces, self.answers.put)
        self._stream: torch.cuda.Stream | None = None

    def denoiser(
        self, geometry: Geometry, schedule: Schedule, ring_dtype: torch.dtype | None = None
    ) -> ParallelDenoiser:
        """A denoiser over the group; one at a time. Raises: BadInput for fewer steps than stages need."""
        self.layout.require_steps(schedule.num_steps)
        return ParallelDenoiser(self, geometry, schedule, ring_dtype)

    def stop(self) -> None:
        """Let the other ranks go."""
        self.tell(self.layout.workers, Stop())
        self.group.post.settle()

    def tell(self, ranks: range, message: Message) -> None:
        """Give a message to ranks, this one included, which acts on it at once, after the others have it."""
        for rank in ranks:
            if rank != 0:
                self.group.post.send(message, rank)
        if 0 in ranks and not isinstance(message, Stop):
            assert self.stage is not None
            self.stage.handle(message)

    def answer(self, rank: int) -> Done:
        """A rank's next answer, waited for."""
        return self.answers.get() if rank == 0 else self.group.post.receive(rank)

    @contextmanager
    def on_own_stream(self) -> Iterator[None]:
        """For the conducting thread: items go before the decoding that shares the GPU with them."""
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


@dataclass
class UnderWay:
    """A block that has been submitted: the next step to hand out, and how many have been done."""

    block: Block
    anchor: int
    latents: Tensor
    step: int = 0
    num_done: int = 0


class ParallelDenoiser:
    """See Denoiser. Items are handed out diagonal by diagonal, in an order that depends on nothing but the
    layout, a few ahead of those that are done."""

    def __init__(
        self, conductor: Conductor, geometry: Geometry, schedule: Schedule, ring_dtype: torch.dtype | None
    ) -> None:
        self.geometry, self.schedule = geometry, schedule
        self._conductor, self._layout, self._ring_dtype = conductor, conductor.layout, ring_dtype
        self.num_in_flight = (
            1 + self._layout.lag_of(schedule.num_steps - 1, schedule.num_steps) + BLOCKS_AHEAD
        )
        self._thread: threading.Thread | None = None

    def begin(self, conditions: Conditions) -> None:
        """See Denoiser. Ends the generation before, if it was not ended."""
        self.close()
        run = Run(self._conductor, self.schedule, self.geometry, self._ring_dtype)
        self._orders, self._finished = run.orders, run.finished
        self._orders.put(on_cpu(conditions))
        self._quit = run.quit
        self._thread = threading.Thread(target=run.conduct, name="conductor", daemon=True)
        self._thread.start()

    def refresh(self, reference: Tensor) -> None:
        """See Denoiser."""
        self._orders.put(reference.cpu())

    def submit(self, block: Block) -> None:
        """See Denoiser."""
        pose = None if block.pose is None else block.pose.cpu()
        self._orders.put(replace(block, audio=block.audio.cpu(), pose=pose))

    def collect(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """See Denoiser; check is called often. On the CPU. Raises: what any part of the group raised."""
        try:
            while True:
                check()
                try:
                    finished = self._finished.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                if isinstance(finished, BaseException):
                    raise finished
                return finished
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hand out no more, wait for what is under way, free the caches of every rank."""
        if self._thread is not None:
            self._quit.set()
            self._orders.put(None)
            self._thread.join()
            self._thread = None


Order = Conditions | Tensor | Block | None
"""What the rollout wants: to begin, to refresh the anchor, to submit a block; None: look whether to quit."""


class Run:
    """One generation, in the conducting thread."""

    def __init__(
        self, conductor: Conductor, schedule: Schedule, geometry: Geometry, ring_dtype: torch.dtype | None
    ) -> None:
        self.orders: queue.Queue[Order] = queue.Queue()
        self.finished: queue.Queue[Tensor | BaseException] = queue.Queue()
        self.quit = threading.Event()
        self._conductor, self._layout = conductor, conductor.layout
        self._schedule, self._geometry, self._ring_dtype = schedule, geometry, ring_dtype
        self._blocks: dict[int, UnderWay] = {}
        self._waiting: deque[tuple[int, int]] = deque()  # items handed out, not known to be done
        self._anchor = 0
        self._old_anchors: set[int] = set()

    def conduct(self) -> None:
        """Follow orders until told to quit; what goes wrong ends up among the finished blocks."""
        try:
            with torch.no_grad(), self._conductor.on_own_stream():
                while not self.quit.is_set():
                    self._take_orders()
                    if self.quit.is_set():
                        break
                    if (item := self._next()) is not None:
                        self._hand_out(*item)
                    elif self._waiting:
                        self._await_one()
                while self._waiting:
                    self._await_one()
                self._conductor.tell(self._layout.workers, End())
        except BaseException as error:
            if not isinstance(error, AvatarError):
                log.error("the group failed", exc_info=error)
            self.finished.put(error)

    def _take_orders(self) -> None:
        """All that are there; with nothing else to do, wait for one."""
        idle = self._next() is None and not self._waiting
        while True:
            try:
                order = self.orders.get(block=idle)
            except queue.Empty:
                return
            idle = False
            match order:
                case Conditions():
                    self._begin(order)
                case Block():
                    self._open(order)
                case Tensor():
                    self._refresh(order)

    def _begin(self, conditions: Conditions) -> None:
        begin = Begin(
            geometry=self._geometry,
            schedule=Schedule(self._schedule.timesteps, self._schedule.sigmas),
            ring_dtype=self._ring_dtype,
            num_speakers=len(conditions.audio),
            masks=conditions.masks,
            text=None,
            motion=None,
        )
        self._tell_all(begin, replace(begin, text=conditions.text, motion=conditions.motion))
        self._prefill(conditions.reference)

    def _refresh(self, reference: Tensor) -> None:
        self._old_anchors.add(self._anchor)
        self._release()
        self._anchor += 1
        self._prefill(reference)

    def _prefill(self, reference: Tensor) -> None:
        self._tell_all(Prefill(self._anchor, None), Prefill(self._anchor, reference))

    def _release(self) -> None:
        """Free the old anchors that no block under way names any more."""
        for anchor in self._old_anchors - {under.anchor for under in self._blocks.values()}:
            self._conductor.tell(self._layout.workers, Release(anchor))
            self._old_anchors.discard(anchor)

    def _open(self, block: Block) -> None:
        self._blocks[block.index] = UnderWay(block, self._anchor, block.noise)
        inputs = Open(replace(block, noise=NOTHING), self._anchor)
        bare = replace(block, noise=NOTHING, audio=NOTHING, pose=None)
        self._tell_all(Open(bare, self._anchor), inputs)

    def _tell_all(self, message: Message, to_embedders: Message) -> None:
        """One message to the stages that have the first layer, another to the others."""
        layout = self._layout
        for stage in reversed(range(layout.num_stages)):  # rank 0 acts at once: the others must know before
            embeds = stage == 0 or layout.kind != "layers"
            self._conductor.tell(layout.ranks_of(stage), to_embedders if embeds else message)

    def _next(self) -> tuple[int, int] | None:
        """The item to hand out next: of the diagonals the first, there the newest block."""
        num_steps = self._schedule.num_steps
        items = [(index, under.step) for index, under in self._blocks.items() if under.step < num_steps]
        return min(items, key=self._place, default=None)

    def _place(self, item: tuple[int, int]) -> tuple[int, int]:
        index, step = item
        return index + self._layout.lag_of(step, self._schedule.num_steps), step

    def _hand_out(self, index: int, step: int) -> None:
        """Tell the stages of an item, once few enough are under way and its latents are there."""
        layout, num_steps, under = self._layout, self._schedule.num_steps, self._blocks[index]
        arrives = step == 0 or layout.moves_after(step - 1, num_steps)
        while len(self._waiting) > layout.num_stages or (arrives and under.num_done < step):
            self._await_one()
        if self.quit.is_set():
            return
        chain = layout.chain_of(step, num_steps)
        under.step += 1
        self._waiting.append((index, step))
        for stage in chain:
            wanted = arrives and stage in (chain[0], chain[-1])
            self._conductor.tell(layout.ranks_of(stage), Work(index, step, under.latents if wanted else None))

    def _await_one(self) -> None:
        """Wait for the item that was handed out first; a block's last one finishes it."""
        index, step = self._waiting.popleft()
        last = self._layout.chain_of(step, self._schedule.num_steps)[-1]
        done = self._conductor.answer(self._layout.ranks_of(last)[0])
        assert (done.block, done.step) == (index, step)
        under = self._blocks[index]
        under.num_done += 1
        if done.latents is not None:
            under.latents = done.latents
        if under.num_done == self._schedule.num_steps:
            del self._blocks[index]
            self._release()
            self.finished.put(under.latents)


def on_cpu(conditions: Conditions) -> Conditions:
    """What the ranks are sent; the audio comes block by block."""
    return replace(
        conditions,
        text=conditions.text.cpu(),
        reference=conditions.reference.cpu(),
        motion=conditions.motion.cpu(),
        masks=None if conditions.masks is None else conditions.masks.cpu(),
    )
