"""The wavefront schedule: when each item (block, step) is handed out, in every layout, and the state kept.

It knows stages by number and their answers, but neither devices nor processes.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from avatar.distributed.p2p import Begin, Done, End, Message, OpenBlockInputs, Prefill, Release, Work
from avatar.errors import AvatarError
from avatar.geometry import Geometry
from avatar.pipeline.denoiser import Conditions
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.generation import Block
from avatar.planning.layout import Layout

log = logging.getLogger(__name__)

NOTHING = torch.empty(0)


@dataclass
class BlockInProgress:
    """A submitted block. step: the next one to hand out; num_done: steps completed."""

    block: Block
    anchor: int
    latents: Tensor
    step: int = 0
    num_done: int = 0


Order = Conditions | Tensor | Block | None
"""What the rollout wants: to begin, to refresh the anchor, to submit a block; None: look whether to quit."""


class Workers(Protocol):
    """What a WavefrontRun needs of the ranks that do its items; implemented by rank 0's Coordinator."""

    layout: Layout

    def send(self, ranks: range, message: Message) -> None:
        """Send a message to ranks."""
        ...

    def receive(self, rank: int) -> Done:
        """Wait for a rank's next answer."""
        ...

    def settle(self) -> None:
        """Wait until every message has been received."""
        ...

    def on_own_stream(self) -> AbstractContextManager[None]:
        """Context around a whole run."""
        ...


class WavefrontRun:
    """One generation, run in the conducting thread.

    Item (b, s) needs (b, s - 1) for its input and (b - 1, s) for its rings. Items are handed out diagonal by
    diagonal (Layout.place_of), and within a diagonal the newest block first.
    begun: set when the first item has been handed out, or none will be. over: set when the run has ended.
    """

    def __init__(
        self, conductor: Workers, schedule: Schedule, geometry: Geometry, ring_dtype: torch.dtype | None
    ) -> None:
        self.orders: queue.Queue[Order] = queue.Queue()
        self.finished: queue.Queue[Tensor | BaseException] = queue.Queue()
        self.quit, self.begun, self.over = threading.Event(), threading.Event(), threading.Event()
        self._conductor, self._layout = conductor, conductor.layout
        self._schedule, self._geometry, self._ring_dtype = schedule, geometry, ring_dtype
        self._blocks: dict[int, BlockInProgress] = {}
        self._waiting: deque[tuple[int, int]] = deque()  # items handed out and not yet answered
        self._first: int | None = None  # index of this run's first block; not 0 if the video was resumed
        self._anchor = 0
        self._old_anchors: set[int] = set()

    def conduct(self) -> None:
        """Follow orders until `quit` is set; an error is put into the queue of finished blocks."""
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
                self._conductor.send(self._layout.workers, End())
                self._conductor.settle()
        except BaseException as error:
            if not isinstance(error, AvatarError):
                log.error("the group failed", exc_info=error)
            self.finished.put(error)
        finally:
            self.begun.set()
            self.over.set()

    def _take_orders(self) -> None:
        """Process all queued orders; if there is nothing else to do, wait for one."""
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
            num_tokens=len(conditions.text),
            text=None,
            motion=None,
        )
        self._send_all(begin, replace(begin, text=conditions.text, motion=conditions.motion))
        self._prefill(conditions.reference)

    def _refresh(self, reference: Tensor) -> None:
        self._old_anchors.add(self._anchor)
        self._release()
        self._anchor += 1
        self._prefill(reference)

    def _prefill(self, reference: Tensor) -> None:
        self._send_all(Prefill(self._anchor, None), Prefill(self._anchor, reference))

    def _release(self) -> None:
        """Free the old anchors that no block in progress refers to any more."""
        for anchor in self._old_anchors - {under.anchor for under in self._blocks.values()}:
            self._conductor.send(self._layout.workers, Release(anchor))
            self._old_anchors.discard(anchor)

    def _open(self, block: Block) -> None:
        self._first = block.index if self._first is None else self._first
        self._blocks[block.index] = BlockInProgress(block, self._anchor, block.noise)
        inputs = OpenBlockInputs(replace(block, noise=NOTHING), self._anchor)
        bare = replace(block, noise=NOTHING, audio=NOTHING, pose=None)
        self._send_all(OpenBlockInputs(bare, self._anchor), inputs)

    def _send_all(self, message: Message, to_embedders: Message) -> None:
        """Send one message to the stages that have the first layer, and another to the others."""
        layout = self._layout
        for stage in reversed(range(layout.num_stages)):  # rank 0 last, as it handles the message at once
            embeds = stage == 0 or layout.kind != "layers"
            self._conductor.send(layout.ranks_of(stage), to_embedders if embeds else message)

    def _next(self) -> tuple[int, int] | None:
        """The next item to hand out, or None."""
        num_steps = self._schedule.num_steps
        items = [(index, under.step) for index, under in self._blocks.items() if under.step < num_steps]
        return min(items, key=self._place, default=None)

    def _place(self, item: tuple[int, int]) -> tuple[int, int]:
        index, step = item
        assert self._first is not None
        return self._layout.place_of(index - self._first, step, self._schedule.num_steps), step

    def _hand_out(self, index: int, step: int) -> None:
        """Send an item to its stages, once few enough are in progress and its latents are available."""
        layout, num_steps, under = self._layout, self._schedule.num_steps, self._blocks[index]
        arrives = step == 0 or layout.moves_after(step - 1, num_steps)
        while len(self._waiting) >= layout.most_items or (arrives and under.num_done < step):
            self._await_one()
        if self.quit.is_set():
            return
        chain = layout.chain_of(step, num_steps)
        under.step += 1
        self._waiting.append((index, step))
        for stage in reversed(chain):  # as in _send_all
            wanted = arrives and stage in (chain[0], chain[-1])
            self._conductor.send(layout.ranks_of(stage), Work(index, step, under.latents if wanted else None))
        self.begun.set()

    def _await_one(self) -> None:
        """Wait for the oldest unanswered item; a block's last item finishes the block."""
        index, step = self._waiting.popleft()
        last = self._layout.chain_of(step, self._schedule.num_steps)[-1]
        done = self._conductor.receive(self._layout.ranks_of(last)[0])
        assert (done.block, done.step) == (index, step)
        under = self._blocks[index]
        under.num_done += 1
        if done.latents is not None:
            under.latents = done.latents
        if under.num_done == self._schedule.num_steps:
            del self._blocks[index]
            self._release()
            self.finished.put(under.latents)
