"""Consecutive layers with their caches, run for one work item (block, step) at a time.

A pipeline stage owns some layers and their rings; the local denoiser owns all. Items may come in any order in
which each step sees the blocks in sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from avatar.geometry import Geometry
from avatar.model.attention import KEY_TILE, attends_in_parts, attention, attention_with_lse, join_parts
from avatar.model.attention_8bit import Calibration, EightBitRing, EightBitWindow, Queries, empty_ring
from avatar.model.audio_injection import AudioTokens, Injection, InjectionContext
from avatar.model.compile import compiled
from avatar.model.device_checks import compiles
from avatar.model.kernels.selection import eight_bit_on, fused_on
from avatar.model.kv_cache import (
    KeysValues,
    LayerCache,
    Ring,
    ShortText,
    Window,
    place,
    quantise_tokens,
    widen_tokens,
)
from avatar.model.quantize import FLOAT8
from avatar.model.rope import rotate
from avatar.model.transformer import LayerParts, StreamingTransformer
from avatar.model.transformer_layer import TransformerLayer
from avatar.pipeline.offload.host_layers import HostRings, RingMemory


class WorkItem(NamedTuple):
    """The inputs, other than tokens, that every layer needs for one work item (block, step).

    anchor: which prefill's condition to attend to. modulation: 6 C float32. table, condition_table: rotary
    tables of the block's and the condition's tokens. masks: S N 1, or None for a single speaker.
    """

    block: int
    step: int
    anchor: int
    modulation: Tensor
    table: Tensor
    condition_table: Tensor
    audio: AudioTokens
    masks: Tensor | None


@dataclass(frozen=True)
class CompiledPieces:
    """The functions that run between attentions, compiled or not; the same for every layer.

    project_quantised: for 8-bit attention, if our own kernels are used (see kernels.fused), else None.
    """

    project: Callable[..., tuple[Tensor, KeysValues]] = TransformerLayer.project_rotated
    place: Callable[..., None] = place
    join_parts: Callable[..., Tensor] = join_parts
    quantise_tokens: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = quantise_tokens
    widen_tokens: Callable[..., None] = widen_tokens
    after_self_attention: Callable[..., tuple[Tensor, Tensor]] = TransformerLayer.after_self_attention
    normed_query: Callable[..., Tensor] = TransformerLayer.normed_query
    after_cross_attention: Callable[..., Tensor] = TransformerLayer.after_cross_attention
    after_short_text: Callable[..., Tensor] = TransformerLayer.after_short_text
    add_audio: Callable[..., Tensor] = Injection.add
    project_quantised: Callable[..., Queries] | None = None

    @classmethod
    def on(cls, device: torch.device) -> CompiledPieces:
        """The fastest pieces that a device supports: our own kernels, else compiled, else eager."""
        if device.type != "cuda" or not compiles(device):
            return cls()
        return cls.fused() if fused_on(device) else cls.compiled()

    @classmethod
    def fused(cls) -> CompiledPieces:
        """Pieces that use kernels.fused; those without a kernel there are compiled."""
        from avatar.model.kernels import fused  # needs Triton

        return replace(
            cls.compiled(),
            project=fused.project_rotated,
            after_self_attention=fused.after_self_attention,
            after_cross_attention=fused.after_cross_attention,
            after_short_text=fused.after_short_text,
            project_quantised=fused.project_quantised,
        )

    @classmethod
    def compiled(cls, **options: Any) -> CompiledPieces:
        """Each piece as one graph with static shapes, built at first use.

        Every new picture size needs new graphs. options: passed to torch.compile.
        """
        pieces = {name: f for name, f in vars(cls()).items() if f is not None}
        return cls(**{name: compiled(f, **options) for name, f in pieces.items()})


EAGER = CompiledPieces()
TEXT_ROWS = 8  # a short prompt is rounded up to a multiple of this many rows

Visit = Callable[[int], AbstractContextManager[LayerParts]]


@dataclass
class LayerStack:
    """A range of layers at a range of steps, on one device.

    dtype: the residual stream's. ring_dtype: storage dtype of rings, None for dtype; int8 means keys in int8
    and values in fp8, which attention reads directly (see attention_8bit); a device that does not support it
    gets fp8 rings instead.
    visit: a context manager entered with a layer's index around each use; it yields the layer and its
    injection on the device. None if all layers are resident. rings_on_host: rings are offloaded to
    ring_memory, and on the device only around their use. diagonal: several items are run at a time, the
    oldest block first, which is at the latest step.
    layers_at: the layers run here at a given step, None for all layers at every step. shares_last: the next
    stage also has the last layer, for other steps.
    A layout that splits heads overrides scatter, gather and new_ring, and sets splits_heads.
    """

    splits_heads: ClassVar[bool] = False

    transformer: StreamingTransformer
    geometry: Geometry
    steps: range
    layers: range
    device: torch.device
    dtype: torch.dtype
    pieces: CompiledPieces = field(default_factory=CompiledPieces)
    ring_dtype: torch.dtype | None = None
    visit: Visit | None = None
    rings_on_host: bool = False
    ring_memory: RingMemory = field(default_factory=RingMemory)
    diagonal: bool = False
    layers_at: Callable[[int], range] | None = None
    shares_last: bool = False

    def __post_init__(self) -> None:
        self.caches: dict[int, LayerCache] = {}
        self.host_rings: HostRings | None = None
        self._eight_bit = None
        if self.ring_dtype == torch.int8:
            config = self.transformer.config
            self._eight_bit = eight_bit_on(self.device, config.num_heads, config.head_dim)
            self.ring_dtype = torch.int8 if self._eight_bit is not None else FLOAT8
        self._resident = {index: self.transformer.layer_parts(index) for index in self.layers}
        self._audio: dict[tuple[int, int], InjectionContext] = {}  # by block and layer

    def begin(self, text: Tensor, num_tokens: int) -> None:
        """Discard the last generation and start with empty rings.

        text: the embedded prompt, L C, of which the first num_tokens are real and the others padding.
        """
        self.caches.clear()
        self._audio.clear()
        self.host_rings = None  # frees its memory before new rings are allocated
        rings = self._new_rings()
        for index, (layer, _) in self._visited():
            self.caches[index] = LayerCache(self._text(layer, text, num_tokens), rings[index])
        ring = next(ring for by_step in rings.values() for ring in by_step.values())
        if isinstance(ring, EightBitRing):
            heads = ring.k.shape[2:]
            self._eight_bit_buffers = EightBitWindow(self.geometry, heads[0], heads[1], self.device)
        else:
            self._window_buffers = Window(self.geometry, ring, self.dtype, self.device)

    def prefill(self, x: Tensor, modulation: Tensor, table: Tensor, anchor: int) -> Tensor:
        """Run the condition tokens, N C, attending to themselves, and keep every layer's keys and values.

        Returns the next stage's input: this stack's output, or, if shares_last, the last layer's input.
        """
        entering = x
        for index, (layer, _) in self._visited():
            entering, cache, vectors = x, self.caches[index], layer.vectors(modulation)
            q, own = self.scatter(*layer.project(x, vectors))
            # Copies, so that the fused qkv is freed.
            cache.conditions[anchor] = KeysValues(own.k.contiguous(), own.v.contiguous())
            attended = _attend(rotate(q, table), KeysValues(rotate(own.k, table), own.v))
            x, query = layer.after_self_attention(x, self.gather(attended), vectors)
            x = cross_attention_and_ffn(EAGER, layer, x, query, cache.text, vectors)
        return entering if self.shares_last else x

    def release(self, anchor: int) -> None:
        """Free an anchor's condition; no later item may refer to it."""
        for cache in self.caches.values():
            cache.conditions.pop(anchor, None)

    def forward(self, x: Tensor, item: WorkItem) -> Tensor:
        """Run a block's tokens, N C, through the layers at one step, and append the block to its rings."""
        return self.forward_diagonal([x], [item])[0]

    def forward_diagonal(self, xs: Sequence[Tensor], items: Sequence[WorkItem]) -> list[Tensor]:
        """Run several independent items, visiting each layer only once for all of them."""
        xs = list(xs)
        for index, parts in self._visited():
            xs = [
                self._layer(index, parts, x, item) if index in self._layers_at(item.step) else x
                for x, item in zip(xs, items, strict=True)
            ]
        return xs

    def _layers_at(self, step: int) -> range:
        return self.layers if self.layers_at is None else self.layers_at(step)

    def _layer(self, index: int, parts: LayerParts, x: Tensor, item: WorkItem) -> Tensor:
        """Run one layer and its injection for one item."""
        pieces, cache, (layer, injection) = self.pieces, self.caches[index], parts
        if item.step not in cache.vectors:
            cache.vectors[item.step] = layer.vectors(item.modulation)
        vectors = cache.vectors[item.step]
        if self._eight_bit is None:
            q, own = self.scatter(*pieces.project(layer, x, vectors, item.table))
            attended = self._attended(index, q, own, item)
        else:
            attended = self._attended_in_eight_bits(index, layer, x, vectors, item)
        x, query = pieces.after_self_attention(layer, x, self.gather(attended), vectors)
        x = cross_attention_and_ffn(pieces, layer, x, query, cache.text, vectors)
        if injection is not None:
            x = pieces.add_audio(injection, x, self._injection_context(injection, index, item), item.masks)
        return x

    def _text(self, layer: TransformerLayer, text: Tensor, num_tokens: int) -> KeysValues | ShortText:
        """The prompt in the form that a layer's cross-attention caches."""
        num_rows = self.transformer.config.short_text_tokens
        if num_tokens < num_rows <= len(text):
            if self.pieces.project_quantised is not None:  # its kernels do not recompile per number of rows
                num_rows = min(num_rows, (num_tokens // TEXT_ROWS + 1) * TEXT_ROWS)
            return layer.cross_attn.short_text(text, num_tokens, num_rows)
        return layer.cross_attn.keys_values(text)

    def scatter(self, q: Tensor, own: KeysValues) -> tuple[Tensor, KeysValues]:
        """Before self-attention: exchange some tokens of all heads for all tokens of some heads."""
        return q, own

    def gather(self, attended: Tensor) -> Tensor:
        """After self-attention: undo scatter."""
        return attended

    def new_ring(self) -> Ring:
        """An empty ring on the device, for the heads that scatter assigns to it."""
        config, dtype = self.transformer.config, self.ring_dtype or self.dtype
        return empty_ring(self.geometry, config.num_heads, config.head_dim, dtype, self.device)

    def _new_rings(self) -> dict[int, dict[int, Ring]]:
        """Empty rings by layer and step, allocated where they are kept, in the order of use."""
        order = [(layer, step) for step in self.steps for layer in self._layers_at(step)]
        if self.diagonal:
            order.sort(key=lambda key: (key[0], -key[1]))
        if self.rings_on_host:
            self.host_rings = HostRings(self.device, order, self.new_ring, self.ring_memory)
            rings = self.host_rings.rings
        else:
            rings = {key: self.new_ring() for key in order}
        by_layer: dict[int, dict[int, Ring]] = {layer: {} for layer in self.layers}
        for layer, step in order:
            by_layer[layer][step] = rings[layer, step]
        return by_layer

    def _ring(self, layer: int, step: int) -> AbstractContextManager[Ring]:
        """A context that yields a ring on the device; frames appended in it persist wherever it is kept."""
        if self.host_rings is not None:
            return self.host_rings.use((layer, step))
        return nullcontext(self.caches[layer].rings[step])

    def _attended(self, layer: int, q: Tensor, own: KeysValues, item: WorkItem) -> Tensor:
        """Self-attention's result; a full ring is attended to in place where that is faster.

        Appends the block to the ring.
        """
        cache = self.caches[layer]
        with self._ring(layer, item.step) as ring:
            large = ring.k.shape[:2].numel() >= 2 * KEY_TILE  # room for remainder and padding
            full = ring.num_valid == len(ring.k) and ring.k.dtype == q.dtype
            if large and full and attends_in_parts(q):
                return self._attended_in_parts(cache, ring, q, own, item)
            keys = self._window(cache, ring, own, item)
            self._append(ring)
        return _attend(q, keys)

    def _attended_in_eight_bits(
        self, index: int, layer: TransformerLayer, x: Tensor, vectors: Tensor, item: WorkItem
    ) -> Tensor:
        """Self-attention's result with 8-bit keys and values. Appends the block to the ring.

        A ring is calibrated with its first block.
        """
        kernels, buffers, cache = self._eight_bit, self._eight_bit_buffers, self.caches[index]
        assert kernels is not None
        kept, condition = cache.rings[item.step], cache.conditions[item.anchor]
        assert isinstance(kept, EightBitRing)
        calibration, at_once = kept.calibration, self.pieces.project_quantised
        if calibration is not None and at_once is not None and not self.splits_heads:
            q = at_once(layer, x, vectors, item.table, calibration, buffers.own)
        else:
            wide, own = self.scatter(*self.pieces.project(layer, x, vectors, item.table))
            if calibration is None:
                rotated = KeysValues(rotate(condition.k, item.condition_table), condition.v)
                calibration = Calibration.of(own, rotated)
            q = kernels.quantise_heads(wide)
            kernels.write(buffers.own, own, calibration)
        kernels.write(buffers.condition, condition, calibration, item.condition_table)
        with self._ring(index, item.step) as ring:
            assert isinstance(ring, EightBitRing)
            ring.calibration = calibration
            parts = [buffers.near, ring.past()] if ring.num_valid else [buffers.near]
            attended = kernels.attend(q, parts, calibration, x.dtype)
            ring.append(buffers.own)
        return attended

    def _attended_in_parts(
        self, cache: LayerCache, ring: Ring, q: Tensor, own: KeysValues, item: WorkItem
    ) -> Tensor:
        """Attend to the ring's whole tiles in place, and separately to condition, own and the ring's rest.

        This avoids copying the ring, and makes both parts whole tiles: the second is padded with copies of
        one of its own keys, whose contribution join_parts subtracts.
        """
        buffers, place = self._window_buffers, self.pieces.place
        past = KeysValues(ring.k.flatten(0, 1), ring.v.flatten(0, 1))
        whole = len(past.k) // KEY_TILE * KEY_TILE
        num_left = len(past.k) - whole
        padding = -(len(buffers.condition.k) + len(buffers.own.k) + num_left) % KEY_TILE
        near, left, filling = buffers.near(num_left, padding)
        place(buffers.condition, cache.conditions[item.anchor], item.condition_table)
        place(buffers.own, own, None)
        if num_left:
            place(left, KeysValues(past.k[whole:], past.v[whole:]), None)
        if padding:
            filling.k.copy_(near.k[0])
            filling.v.zero_()
        parts = attention_with_lse(q, *near), attention_with_lse(q, past.k[:whole], past.v[:whole])
        self._append(ring)
        return self.pieces.join_parts(q, *parts, near.k[0], padding)

    def _window(self, cache: LayerCache, ring: Ring, own: KeysValues, item: WorkItem) -> KeysValues:
        """All keys and values that the block attends to."""
        buffers = self._window_buffers
        self.pieces.place(buffers.condition, cache.conditions[item.anchor], item.condition_table)
        self.pieces.place(buffers.own, own, None)
        return buffers.with_past(ring, self.pieces.widen_tokens)

    def _append(self, ring: Ring) -> None:
        """Append the block, whose keys and values are in the window, to the ring."""
        own = self._window_buffers.own
        ring.append(own if ring.scales is None else self.pieces.quantise_tokens(own))

    def _injection_context(self, injection: Injection, layer: int, item: WorkItem) -> InjectionContext:
        """The block's InjectionContext: computed at its first step here, freed at its last."""
        key = (item.block, layer)
        if key not in self._audio:
            self._audio[key] = injection.context(item.audio)
        is_last = item.step == max(self.caches[layer].rings)
        return self._audio.pop(key) if is_last else self._audio[key]

    def _visited(self) -> Iterator[tuple[int, LayerParts]]:
        for index in self.layers:
            parts = self._resident[index]
            with self.visit(index) if self.visit is not None else nullcontext(parts) as parts:
                yield index, parts


def cross_attention_and_ffn(
    pieces: CompiledPieces,
    layer: TransformerLayer,
    x: Tensor,
    query: Tensor,
    text: KeysValues | ShortText,
    vectors: Tensor,
) -> Tensor:
    """The rest of a layer: cross-attention to a long or short prompt, then the feed-forward."""
    if isinstance(text, ShortText):
        return pieces.after_short_text(layer, x, query, text, vectors)
    attended = _attend(pieces.normed_query(layer, query), text)
    return pieces.after_cross_attention(layer, x, attended, vectors)


def _attend(q: Tensor, keys: KeysValues) -> Tensor:
    """Attention without a batch: N h d."""
    return attention(q[None], keys.k[None], keys.v[None])[0]
