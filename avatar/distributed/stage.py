"""One rank's share of the transformer: some layers, at some steps, for some heads.

A stage executes messages in order, without knowing the schedule behind them. Tokens come from the previous
stage and go to the next one; latents travel with the messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avatar.distributed.completion import Completions
from avatar.distributed.fsdp import LayerGatherer
from avatar.distributed.p2p import Begin, Done, End, Message, OpenBlockInputs, Prefill, Release, Work
from avatar.distributed.process_groups import Group
from avatar.distributed.ulysses import PeerTokens, SharedStack
from avatar.distributed.warmup import no_audio, rehearse
from avatar.geometry import BLOCK_LATENT_FRAMES
from avatar.model.audio_injection import AudioTokens
from avatar.model.rope import REFERENCE_TIME
from avatar.model.transformer import StreamingTransformer
from avatar.pipeline.device import uploaded
from avatar.pipeline.flow_match_euler import Schedule
from avatar.pipeline.generation import GenerationState, OpenBlock, Times
from avatar.pipeline.layer_stack import EAGER, CompiledPieces, LayerStack, Visit, WorkItem
from avatar.planning.layout import Role

MAX_SENDING = 2  # tensors being sent to the next stage


class Stage:
    """One rank's share of the transformer; see the module.

    answer: called with Done once the device has completed an item that this rank answers for.
    """

    def __init__(
        self,
        group: Group,
        transformer: StreamingTransformer,
        dtype: torch.dtype,
        pieces: CompiledPieces,
        answer: Callable[[Done], None],
    ) -> None:
        """transformer: has this rank's tensors. dtype: the residual stream's."""
        self.group, self.transformer, self.dtype, self.device = group, transformer, dtype, group.device
        self._pieces = pieces
        self._visit: Visit | None = None
        if group.gathering is not None:
            self._visit = LayerGatherer(transformer, group.meter).visit
        self._answers = Completions(group.device, answer, group.fail)
        self._sending: deque[Any] = deque()
        self._opened: dict[int, OpenBlock] = {}
        self._stack: LayerStack | None = None
        self._generation: GenerationState | None = None
        self._rehearsed: set[tuple[object, ...]] = set()  # settings whose graphs have been built

    @torch.no_grad()
    def handle(self, message: Message) -> None:
        """Execute a message."""
        match message:
            case Begin():
                self._begin(message)
            case Prefill():
                self._prefill(message)
            case OpenBlockInputs():
                self._open(message)
            case Work():
                self._work(message)
            case Release(anchor):
                self.stack.release(anchor)
            case End():
                self._end()
        self.group.meter.tick()

    @property
    def stack(self) -> LayerStack:
        """The layers with their caches, between Begin and End."""
        assert self._stack is not None
        return self._stack

    @property
    def generation(self) -> GenerationState:
        """The state shared by all items, between Begin and End."""
        assert self._generation is not None
        return self._generation

    def _begin(self, begin: Begin) -> None:
        self._end()
        model, config, schedule = self.transformer, self.transformer.config, begin.schedule
        role = self.group.layout.role_of(self.group.rank, schedule.num_steps)
        assert role is not None
        layout, rank = self.group.layout, self.group.rank
        self._role, self._num_speakers = role, begin.num_speakers
        self._embeds, self._ends = role.layers.start == 0, role.layers.stop == config.num_layers
        # The same peer in the previous and the next stage, in a pipeline of layers.
        self._before = None if self._embeds else rank - layout.group_size
        self._after = None if self._ends else rank + layout.group_size
        self._tokens = PeerTokens.of(begin.geometry, layout.group_size, role.peer, self.group.sharing)
        text = model.embed_text(self._upload(begin.text)) if self._embeds else None
        text = self._relay(text, (config.text_len, config.dim), self.dtype)
        self._generation = GenerationState(
            transformer=model,
            geometry=begin.geometry,
            schedule=schedule,
            device=self.device,
            dtype=self.dtype,
            times=self._relay_times(schedule),
            motion=begin.motion,
            masks=begin.masks,
            tokens=self._tokens,
        )
        self._stack = self._new_stack(begin, role)
        self._stack.begin(text, begin.num_tokens)
        if self._rehearse(begin):
            self._stack.begin(text, begin.num_tokens)

    def _rehearse(self, begin: Begin) -> bool:
        """Build the graphs that this generation needs. Returns False if they have been built before."""
        config, role = self.transformer.config, self._role
        is_short = begin.num_tokens < config.short_text_tokens
        needed = (begin.geometry, begin.ring_dtype, begin.num_speakers, is_short)
        if self._pieces == EAGER or needed in self._rehearsed:
            return False
        generation = self.generation
        item = WorkItem(
            block=0,
            step=role.steps[0],
            anchor=0,
            modulation=generation.times.layers[-1],
            table=generation.table_of(0),
            condition_table=generation.condition_table.at(REFERENCE_TIME),
            audio=no_audio(config, begin.num_speakers, self.dtype, self.device),
            masks=generation.masks,
        )
        counts = self._tokens.num_block, self._tokens.num_condition
        rehearse(self.stack, item, *counts, self.group.meter.tick)
        self._rehearsed.add(needed)
        return True

    def _relay_times(self, schedule: Schedule) -> Times:
        """The time embeddings of all steps, computed by the first stage and passed on."""
        count, dim = schedule.num_steps + 1, self.transformer.config.dim
        layers = head = None
        if self._embeds:
            times = Times.embed(self.transformer, schedule)
            layers, head = times.layers, times.head
        layers = self._relay(layers, (count, 6, dim), torch.float32)
        return Times(layers, self._relay(head, (count, dim), torch.float32))

    def _new_stack(self, begin: Begin, role: Role) -> LayerStack:
        shared: dict[str, Any] = {
            "transformer": self.transformer,
            "geometry": begin.geometry,
            "steps": role.steps,
            "layers": role.layers,
            "device": self.device,
            "dtype": self.dtype,
            "pieces": self._pieces,
            "ring_dtype": begin.ring_dtype,
            "visit": self._visit,
            "layers_at": role.layers_at,
            "shares_last": role.shares_last,
        }
        layout = self.group.layout
        if layout.group_size == 1:
            return LayerStack(**shared)
        heads = tuple(
            peer.heads for peer in map(layout.role_of, layout.ranks_of(role.stage)) if peer is not None
        )
        return SharedStack(
            **shared, peers=self.group.sharing, heads=heads, peer=role.peer, meter=self.group.meter
        )

    def _prefill(self, prefill: Prefill) -> None:
        if prefill.reference is not None:
            reference = self._upload(prefill.reference)
            with self.group.meter.working():
                x = self.generation.embed_condition(reference)
        else:
            x = self._take((self._tokens.num_condition, self.transformer.config.dim), self.dtype)
        with self.group.meter.working():
            x = self.generation.prefill(self.stack, x, prefill.anchor)
        self._pass_on(x)

    def _open(self, opening: OpenBlockInputs) -> None:
        block, config = opening.block, self.transformer.config
        local = overall = None
        if self._embeds:
            local, overall = self.transformer.embed_audio(self._upload(block.audio))
        shape = (self._num_speakers, BLOCK_LATENT_FRAMES, config.dim)
        local_shape = (*shape[:2], config.num_audio_token + 1, config.dim)
        audio = AudioTokens(
            self._relay(local, local_shape, self.dtype), self._relay(overall, shape, self.dtype)
        )
        self._opened[block.index] = self.generation.open(block, audio, opening.anchor)

    def _work(self, work: Work) -> None:
        opened, generation = self._opened[work.block], self.generation
        self._answers.wait()
        if work.latents is not None:
            opened.latents = self._upload(work.latents)
        if not self._embeds:
            x = self._take((self._tokens.num_block, self.transformer.config.dim), self.dtype)
        with self.group.meter.working():
            if self._embeds:
                x = generation.embed(opened)
            x = self.stack.forward(x, generation.item(opened, work.step))
            if self._ends:
                generation.advance(opened, x, work.step)
        self._pass_on(x)
        if work.step == self._role.steps[-1]:
            del self._opened[work.block]
        self._answers.mark(self._done(opened, work))

    def _done(self, opened: OpenBlock, work: Work) -> Done | None:
        """The answer to rank 0, which one rank of the item's last stage sends."""
        if not self._ends or self._role.peer:
            return None
        layout, num_steps = self.group.layout, self.generation.schedule.num_steps
        stays = work.step + 1 < num_steps and not layout.moves_after(work.step, num_steps)
        return Done(work.block, work.step, None if stays else self._answers.download(opened.latents))

    def _relay(self, x: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Pass the first stage's tensor to all others: receive it from the previous stage, and send it on."""
        if x is None:
            x = self._take(shape, dtype)
        self._pass_on(x)
        return x

    def _take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert self._before is not None
        return self.group.take(shape, dtype, self._before)

    def _pass_on(self, x: Tensor) -> None:
        if self._after is None:
            return
        self._sending.append(self.group.pass_on(x.contiguous(), self._after))
        while len(self._sending) > MAX_SENDING:
            self._sending.popleft().wait()

    def _upload(self, values: Tensor | None) -> Tensor:
        """Copy to the device without waiting for its current work."""
        assert values is not None
        return uploaded(values, self.device)

    def _end(self) -> None:
        """Free everything that belongs to a generation."""
        self._answers.settle()
        while self._sending:
            self._sending.popleft().wait()
        self._opened.clear()
        self._stack = self._generation = None
